"""What a learner notes of each task, and what a task may be called beside those it has learned."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from lamella.data.images import data_sha256
from lamella.data.keeping import Unreadable
from lamella.data.scenario import Task
from lamella.learner.confidence import HeldOut
from lamella.learner.inspection.directions import used_directions
from lamella.methods import Method
from lamella.training.fit import Fit

__all__ = ["TaskRecord", "Unread", "check_task", "task_record", "tasks_from_json"]

NAMED = 20
"""Unreadable files that a record names."""


@dataclass(frozen=True)
class Unread:
    """Files that were left out of a task because they cannot be read.

    Attributes:
        images: how many.
        first: names of the first of them.
    """

    images: int
    first: tuple[str, ...]


@dataclass
class TaskRecord:
    """What a learner notes of a task that it has learned.

    Attributes:
        name: of the task.
        classes: global ids.
        images: how many training samples it had.
        seconds: of each call of the loop, by its name, and "total".
        trainable_parameters: of the call that trained most.
        trained: parameters by call; None where an older version learned the task.
        waited: seconds in which nothing could be computed because samples were not there.
        data_sha256: see `data.images.data_sha256`; None where an older version learned the task.
        directions: by layer, how many directions were protected afterwards; empty where none are.
        held_back: what is kept of the samples that were held out; None where there were none.
        unreadable: files that were left out; None where all could be read.
    """

    name: str
    classes: tuple[int, ...]
    images: int
    seconds: dict[str, float]
    trainable_parameters: int
    trained: dict[str, int] | None = None
    waited: float = 0.0
    data_sha256: str | None = None
    directions: dict[str, int] = field(default_factory=dict)
    held_back: HeldOut | None = None
    unreadable: Unread | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in a model's folder: what is None is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TaskRecord":
        """The record that `to_json` gave, also of an older version.

        Raises:
            ValueError: a field is missing, or this version does not know it.
        """
        unknown = stored.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a task's record has the unknown field '{sorted(unknown)[0]}'; upgrade lamella")
        held, unread = stored.get("held_back"), stored.get("unreadable")
        try:
            return cls(
                **{
                    **stored,
                    "classes": tuple(stored["classes"]),
                    "held_back": None if held is None else HeldOut(**held),
                    "unreadable": None if unread is None else Unread(unread["images"], tuple(unread["first"])),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a task's record is damaged ({error}); restore the file from a copy") from error

    def note_unreadable(self, files: Sequence[Unreadable]) -> None:
        """Note how many files were left out because they cannot be read, and the names of the first."""
        if files:
            self.unreadable = Unread(len(files), tuple(file.key for file in files[:NAMED]))


def tasks_from_json(stored: Sequence[Mapping[str, Any]]) -> list[TaskRecord]:
    """The records of all tasks of a stored model, oldest first."""
    return [TaskRecord.from_json(record) for record in stored]


def check_task(task: Task, class_names: Mapping[int, str]) -> None:
    """Refuse what cannot be learned beside the classes that are known, by global id.

    Raises:
        ValueError: a class id or name means another class than before, or a class has no sample.
    """
    ids = {name: i for i, name in class_names.items()}
    for i, name in zip(task.classes, task.class_names, strict=True):
        if class_names.get(i, name) != name or ids.get(name, i) != i:
            raise ValueError(
                f"class {i} '{name}' of task '{task.name}' contradicts what was learned: {dict(class_names)}"
            )
    counts = torch.bincount(task.train.labels, minlength=max(task.classes) + 1)
    if empty := [name for i, name in zip(task.classes, task.class_names, strict=True) if counts[i] == 0]:
        noun = task.train.noun
        raise ValueError(f"class '{empty[0]}' of task '{task.name}' has no training {noun}; add some or leave it out")


def task_record(task: Task, method: Method, fit: Fit, seconds: float) -> TaskRecord:
    """The record of a task that a method has just learned.

    Args:
        task: what was learned.
        method: that learned it.
        fit: the loop, whose notes are of this task.
        seconds: that learning took.
    """
    return TaskRecord(
        name=task.name,
        classes=tuple(task.classes),
        images=len(task.train),
        seconds=fit.seconds | {"total": max(seconds, sum(fit.seconds.values()))},
        trainable_parameters=max(fit.trained.values(), default=0),
        trained=fit.trained,
        waited=fit.waited,
        data_sha256=data_sha256(task.train, dict(zip(task.classes, task.class_names, strict=True))),
        directions=used_directions(method),
    )
