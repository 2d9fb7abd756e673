"""What a learner notes of each task, and what a task may be called beside those it has learned."""

from collections.abc import Mapping
from typing import Any

import torch

from lamella.data.images import data_sha256
from lamella.data.scenario import Task
from lamella.learner.inspection.directions import used_directions
from lamella.methods import Method
from lamella.training.fit import Fit

__all__ = ["check_task", "task_record"]


def check_task(task: Task, class_names: Mapping[int, str]) -> None:
    """Refuse what cannot be learned beside the classes that are known, by global id.

    Raises:
        ValueError: a class id or name means another class than before, or a class has no image.
    """
    ids = {name: i for i, name in class_names.items()}
    for i, name in zip(task.classes, task.class_names, strict=True):
        if class_names.get(i, name) != name or ids.get(name, i) != i:
            raise ValueError(
                f"class {i} '{name}' of task '{task.name}' contradicts what was learned: {dict(class_names)}"
            )
    counts = torch.bincount(task.train.labels, minlength=max(task.classes) + 1)
    if empty := [name for i, name in zip(task.classes, task.class_names, strict=True) if counts[i] == 0]:
        raise ValueError(f"class '{empty[0]}' of task '{task.name}' has no training image; add some or leave it out")


def task_record(task: Task, method: Method, fit: Fit, seconds: float) -> dict[str, Any]:
    """The record of a task that a method has just learned by a loop, in so many seconds."""
    return {
        "name": task.name, "classes": list(task.classes), "images": len(task.train),
        "data_sha256": data_sha256(task.train, dict(zip(task.classes, task.class_names, strict=True))),
        "directions": used_directions(method),
        "trainable_parameters": max(fit.trained.values(), default=0), "trained": fit.trained,
        "seconds": fit.seconds | {"total": max(seconds, sum(fit.seconds.values()))},
        "waited": fit.waited,
    }  # fmt: skip
