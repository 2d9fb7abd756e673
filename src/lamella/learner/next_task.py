"""New images as a learner's next task."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lamella.common.progress import Progress
from lamella.data.images import ImageSet
from lamella.data.keeping import Unreadable
from lamella.data.scenario import Source, Task
from lamella.data.sources.readable import load_readable
from lamella.learner.learner import Learner

__all__ = ["as_next_task", "learn_from", "note_unreadable"]

NAMED = 20
"""Unreadable files that a record names."""


def as_next_task(source: Source, learner: Learner) -> tuple[Task, ImageSet]:
    """The training part as the learner's next task, and the part that is held back.

    Known class names keep their ids, new ones get the next.

    Raises:
        TypeError: the source holds no images.
    """
    if not isinstance(source.train, ImageSet) or not isinstance(source.test, ImageSet):
        raise TypeError(f"{source.name} holds no images")
    ids = {name: i for i, name in learner.class_names.items()}
    names = [source.class_names[i] for i in source.train.labels.unique().tolist()]
    for name in names:
        ids.setdefault(name, max(ids.values(), default=-1) + 1)  # not their number: classes may have been forgotten
    own = tuple(ids[name] for name in names)
    present = set(names)
    number = torch.tensor([ids[name] if name in present else -1 for name in source.class_names])

    def renumbered(part: ImageSet) -> ImageSet:
        labels = number[part.labels]
        of_task = labels >= 0  # what has only test images cannot be learned, and so tells nothing
        return ImageSet(part.storage, labels, part.keys, part.positions).subset(of_task.nonzero()[:, 0])

    task = Task(len(learner.tasks), source.name, own, tuple(names), renumbered(source.train))
    return task, renumbered(source.test)


def learn_from(learner: Learner, data: str | Path, progress: Progress) -> dict[str, Any]:
    """What `Learner.learn_from` does; arguments, record and errors are its."""
    source, unreadable = load_readable(data)
    if unreadable:
        first = f"the first is {unreadable[0].key}: {unreadable[0].reason}"
        left_out = f"{len(unreadable)} files of '{data}' cannot be read and are left out; {first}"
        warnings.warn(left_out, stacklevel=3)  # where the user called the learner
    task, held_back = as_next_task(source, learner)
    record = learner.learn(task, held_back=held_back, progress=progress)
    note_unreadable(record, unreadable)
    return record


def note_unreadable(record: dict[str, Any], unreadable: Sequence[Unreadable]) -> None:
    """Put into a task's record how many files were left out since they cannot be read, and the names of the first."""
    if unreadable:
        record["unreadable"] = {"images": len(unreadable), "first": [file.key for file in unreadable[:NAMED]]}
