"""Turns a data set into the next task of a model."""

import torch

from lamella.data.images import ImageSet
from lamella.data.scenario import Source, Task
from lamella.learner.model import Model

__all__ = ["as_next_task"]


def as_next_task(source: Source, model: Model) -> tuple[Task, ImageSet]:
    """Turn a data set into the next task of a model. Known class names keep their ids; new ones get the next ids.

    Args:
        source: the data set.
        model: the model that will learn the task.

    Returns:
        The task, with the training part of the data set, and the test part, which is held out.

    Raises:
        TypeError: the data set does not consist of images.
    """
    if not isinstance(source.train, ImageSet) or not isinstance(source.test, ImageSet):
        raise TypeError(f"{source.name} holds no images")
    ids = {name: i for i, name in model.class_names.items()}
    names = [source.class_names[i] for i in source.train.labels.unique().tolist()]
    for name in names:
        ids.setdefault(
            name, max(ids.values(), default=-1) + 1
        )  # not the number of classes: some may have been forgotten
    own = tuple(ids[name] for name in names)
    present = set(names)
    number = torch.tensor([ids[name] if name in present else -1 for name in source.class_names])

    def renumbered(part: ImageSet) -> ImageSet:
        labels = number[part.labels]
        of_task = labels >= 0  # a class that has only test images is not learned, so it is left out
        return ImageSet(part.storage, labels, part.keys, part.positions).subset(of_task.nonzero()[:, 0])

    task = Task(len(model.tasks), source.name, own, tuple(names), renumbered(source.train))
    return task, renumbered(source.test)
