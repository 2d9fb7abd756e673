"""New samples as a learner's next task."""

from collections.abc import Iterator, Sequence

import torch

from lamella.data.loading import Examples
from lamella.data.names import alike
from lamella.data.scenario import Source, Task
from lamella.learner.model import Model

__all__ = ["as_next_task"]


def as_next_task(source: Source, model: Model, name: str | None = None) -> tuple[Task, Examples]:
    """Return the training part as the model's next task, and the part that is held back.

    Known class names keep their ids, new ones get the next.

    Args:
        source: the data set.
        model: the model that will learn it.
        name: the name of the task; None for the name of the data set, with a number if a task has that name already.

    Raises:
        ValueError: a task has this name already, or two names of classes differ only in capitals.
    """
    used = {task.name for task in model.tasks}
    if name in used:
        raise ValueError(f"a task called '{name}' was learned already; choose another name (--name)")
    name = name or next(each for each in _numbered(source.name) if each not in used)
    ids = model.ids()
    class_names = [source.class_names[i] for i in source.train.labels.unique().tolist()]
    _check_capitals([*model.class_names.values(), *(each for each in class_names if each not in ids)])
    for each in class_names:  # the next id is not the number of classes, because some may have been forgotten
        ids.setdefault(each, max(ids.values(), default=-1) + 1)
    own = {ids[each]: model.class_names.get(ids[each], each) for each in class_names}
    present = set(class_names)
    number = torch.tensor([ids[each] if each in present else -1 for each in source.class_names])

    def renumbered(part: Examples) -> Examples:
        labels = number[part.labels]
        of_task = labels >= 0  # what has only test samples cannot be learned, and so tells nothing
        return part.relabelled(labels).subset(of_task.nonzero()[:, 0])

    task = Task(len(model.tasks), name, tuple(own), tuple(own.values()), renumbered(source.train))
    return task, renumbered(source.test)


def _check_capitals(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(alike(name), name)
        if other != name:
            raise ValueError(
                f"the classes '{other}' and '{name}' differ only in capitals: if they are one class, give both the "
                "same name (`lamella classes MODEL rename` for a learned one); if not, give one of them another name"
            )


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, and then the same name with the numbers 2, 3, ... behind it."""
    yield name
    number = 2
    while True:
        yield f"{name} {number}"
        number += 1
