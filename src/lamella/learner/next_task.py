"""New images as a learner's next task."""

from typing import Any

import torch

from lamella.data.images import ImageSet
from lamella.data.scenario import Source, Task
from lamella.learner.model import Model
from lamella.methods.parts import Aligned

__all__ = ["as_next_task", "what_more_images_do"]


def as_next_task(source: Source, model: Model) -> tuple[Task, ImageSet]:
    """The training part as the learner's next task, and the part that is held back.

    Known class names keep their ids, new ones get the next.

    Raises:
        TypeError: the source holds no images.
    """
    if not isinstance(source.train, ImageSet) or not isinstance(source.test, ImageSet):
        raise TypeError(f"{source.name} holds no images")
    ids = {name: i for i, name in model.class_names.items()}
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

    task = Task(len(model.tasks), source.name, own, tuple(names), renumbered(source.train))
    return task, renumbered(source.test)


def what_more_images_do(method: Any) -> str:
    """What a method makes of more images of a class that it knows."""
    if isinstance(method, Aligned) or not (hasattr(method, "heads") or hasattr(method, "base")):
        return "their statistics take in the new images beside the old ones"
    if hasattr(method, "exemplars"):
        return "learned anew from these images and those that the memory has of them"
    if hasattr(method, "base"):
        return what_more_images_do(method.base)
    return "learned anew from these images alone: what their earlier images taught no longer counts for them"
