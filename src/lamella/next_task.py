"""New images as a learner's next task."""

import torch

from lamella.data.images import ImageSet
from lamella.data.scenario import Source, Task
from lamella.learner import Learner

__all__ = ["as_next_task"]


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
        ids.setdefault(name, len(ids))
    number = torch.tensor([ids.get(name, -1) for name in source.class_names])

    def renumbered(part: ImageSet) -> ImageSet:
        return ImageSet(part.storage, number[part.labels], part.keys, part.positions)

    own = tuple(ids[name] for name in names)
    task = Task(len(learner.tasks), source.name, own, tuple(names), renumbered(source.train))
    return task, renumbered(source.test)
