"""Rename, merge and drop classes of a model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lamella.common.checks import did_you_mean
from lamella.learner.model import Model
from lamella.learner.reference import Reference

__all__ = ["drop_class", "merge_classes", "relabel", "rename_class"]


def rename_class(model: Model, old: str, new: str) -> None:
    """Give a class another name. Nothing else changes, and samples under the old name still are of this class.

    Args:
        model: the model, which is changed in place.
        old: the name of the class.
        new: its new name.

    Raises:
        ValueError: there is no class with the old name, or one has the new name already.
    """
    label = _id(model, old)
    if new in model.class_names.values():
        raise ValueError(f"a class is called '{new}' already; choose another name")
    if not new.strip():
        raise ValueError("the new name is empty; give a name")
    model.former_names.pop(new, None)
    model.former_names[old] = label
    model.class_names[label] = new


def merge_classes(model: Model, source: str, target: str) -> None:
    """Make two classes one, as if all their samples had been learned as the second.

    Args:
        model: the model, which is changed in place.
        source: the name of the class that ends.
        target: the name of the class that it becomes part of.

    Raises:
        ValueError: there is no such class, both are the same, or the method cannot do it exactly.
    """
    gone, kept = _id(model, source), _id(model, target)
    if gone == kept:
        raise ValueError(f"'{source}' cannot be merged into itself; name two classes")
    model.method.merge_classes(gone, kept)
    model.former_names[source] = gone
    relabel(model, {gone: kept})


def drop_class(model: Model, name: str) -> None:
    """Drop a class, as if it had never been learned.

    Args:
        model: the model, which is changed in place.
        name: the name of the class.

    Raises:
        ValueError: there is no such class, it is the only one, or the method cannot do it exactly.
    """
    label = _id(model, name)
    if len(model.class_names) == 1:
        raise ValueError(f"'{name}' is the only class; delete the model's folder instead")
    model.method.drop_class(label)
    relabel(model, {label: None})


def _id(model: Model, name: str) -> int:
    """Return the global id of a class by its name."""
    ids = {own: i for i, own in model.class_names.items()}
    if name not in ids:
        known = ", ".join(ids) or "none"
        raise ValueError(f"no class is called '{name}'{did_you_mean(name, ids)}; there are {known}")
    return ids[name]


def relabel(model: Model, changed: Mapping[int, int | None]) -> None:
    """Replace ids of classes in all that a model keeps beside its method, and measure anew what follows from classes.

    Args:
        model: the model, which is changed in place.
        changed: the new id of each class that has another one; None drops a class with its samples.
    """
    model.class_names = {i: name for i, name in model.class_names.items() if i not in changed}
    former = {name: changed.get(i, i) for name, i in model.former_names.items()}
    model.former_names = {name: i for name, i in former.items() if i is not None}
    for record in model.tasks:
        left = (changed.get(i, i) for i in record.classes)
        record.classes = tuple(dict.fromkeys(i for i in left if i is not None))
    for own in (model.held_back, model.seen):
        own.relabel(lambda labels: _replaced(labels, changed))
    model.follow_classes()
    model.reference = Reference()  # it would have to be merged, too; from now on it is not measured


def _replaced(labels: Tensor, changed: Mapping[int, int | None]) -> Tensor:
    new = [changed.get(label, label) for label in labels.tolist()]
    return torch.tensor([-1 if label is None else label for label in new], dtype=torch.int64)
