"""New samples as a learner's next task."""

import torch

from lamella.data.loading import Examples
from lamella.data.scenario import Source, Task
from lamella.learner.model import Model

__all__ = ["as_next_task"]


def as_next_task(source: Source, model: Model) -> tuple[Task, Examples]:
    """The training part as the learner's next task, and the part that is held back.

    Known class names keep their ids, new ones get the next.
    """
    ids = {name: i for i, name in model.class_names.items()}
    names = [source.class_names[i] for i in source.train.labels.unique().tolist()]
    for name in names:
        ids.setdefault(
            name, max(ids.values(), default=-1) + 1
        )  # not the number of classes: some may have been forgotten
    own = tuple(ids[name] for name in names)
    present = set(names)
    number = torch.tensor([ids[name] if name in present else -1 for name in source.class_names])

    def renumbered(part: Examples) -> Examples:
        labels = number[part.labels]
        of_task = labels >= 0  # what has only test samples cannot be learned, and so tells nothing
        return part.relabelled(labels).subset(of_task.nonzero()[:, 0])

    task = Task(len(model.tasks), source.name, own, tuple(names), renumbered(source.train))
    return task, renumbered(source.test)
