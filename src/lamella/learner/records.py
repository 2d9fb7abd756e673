"""The record of each learned task, and the check that a new task fits the learned ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lamella.data.images import UNKNOWN_CLASS, data_sha256
from lamella.data.scenario import Task
from lamella.data.tasks import Unreadable
from lamella.learner.confidence import HeldBackScore
from lamella.learner.inspection.directions import used_directions
from lamella.learner.reference import Beside
from lamella.methods import Method
from lamella.training.fit import Fit

__all__ = ["HeldBackCosts", "TaskRecord", "Unread", "check_task", "task_record", "tasks_from_json"]

NAMED = 20
"""The largest number of unreadable files that a record names."""


@dataclass(frozen=True)
class Unread:
    """Files that were left out of a task because they cannot be read.

    Attributes:
        images: how many files were left out.
        first: the names of the first of them.
    """

    images: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class HeldBackCosts:
    """What answers cost that were held back of a task.

    Attributes:
        answers: how many there were.
        before: nats a target token, before the task was learned.
        after: the same after it.
    """

    answers: int
    before: float
    after: float


@dataclass
class TaskRecord:
    """The record of a learned task.

    Attributes:
        name: the name of the task.
        classes: the global ids of its classes.
        images: how many training samples it had.
        seconds: the duration of each call of the training loop by its name, and the "total".
        trainable_parameters: the largest number of parameters that one call trained.
        trained: the number of trained parameters of each call by its name; None if an older version of Lamella learned
            the task.
        waited: the seconds in which the computation waited for samples.
        data_sha256: the hash of its samples, see `data.images.data_sha256`; None if an older version of Lamella learned
            the task. After a correction it is a hash of this and of the correction.
        directions: the number of protected directions by layer after the task; empty if the method protects none.
        held_back: the statistics of the held-back samples; None if there were none.
        unreadable: the files that were left out; None if all could be read.
        beside: how the model compares after the task with one that trains nothing, on the held-back samples of all
            tasks; None if it trains nothing itself, or this was not measured.
        processes: how many processes learned it together; None for one.
        federated: what clients have sent and who was missing, see `federated.ledger`; None if there were none.
        told: what became of answers, such as how many were cut, in lines; None if there is nothing to tell.
        held_back_costs: what held-back answers cost before and after the task; None if there were none.
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
    held_back: HeldBackScore | None = None
    unreadable: Unread | None = None
    beside: Beside | None = None
    told: list[str] | None = None
    held_back_costs: HeldBackCosts | None = None
    federated: dict[str, Any] | None = None
    processes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Convert the record to JSON values as a model's folder stores them, without fields that are None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TaskRecord":
        """Restore a record from the result of `to_json`, also from an older version of Lamella.

        Args:
            stored: the JSON values.

        Raises:
            ValueError: a field is missing or unknown to this version.
        """
        unknown = stored.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a task's record has the unknown field '{sorted(unknown)[0]}'; upgrade lamella")
        held, unread, beside = (stored.get(key) for key in ("held_back", "unreadable", "beside"))
        costs = stored.get("held_back_costs")
        try:
            return cls(
                **{
                    **stored,
                    "classes": tuple(stored["classes"]),
                    "held_back": None if held is None else HeldBackScore(**held),
                    "unreadable": None if unread is None else Unread(unread["images"], tuple(unread["first"])),
                    "beside": None if beside is None else Beside(**beside),
                    "held_back_costs": None if costs is None else HeldBackCosts(**costs),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a task's record is damaged ({error}); restore the file from a copy") from error

    def note_unreadable(self, files: Sequence[Unreadable]) -> None:
        """Record samples that were left out because they cannot be read, beside those that were recorded before.

        Args:
            files: the samples; their number and the names of the first ones are recorded.
        """
        if files:
            before = self.unreadable or Unread(0, ())
            names = (*before.first, *(file.key for file in files))
            self.unreadable = Unread(before.images + len(files), names[:NAMED])


def tasks_from_json(stored: Sequence[Mapping[str, Any]], file: Path) -> list[TaskRecord]:
    """Restore the records of all tasks of a stored model, oldest first.

    Args:
        stored: the JSON values of the records.
        file: which holds them, for messages.

    Raises:
        ValueError: as `TaskRecord.from_json`.
    """
    try:
        return [TaskRecord.from_json(record) for record in stored]
    except ValueError as error:
        raise ValueError(f"'{file}': {error}") from error


def check_task(task: Task, class_names: Mapping[int, str]) -> None:
    """Check that a task can be learned in addition to the known classes.

    Args:
        task: the new task.
        class_names: the name of each known global class id.

    Raises:
        ValueError: a class id or name means another class than before, two classes have one name, a class has no
            sample, a sample is of none of the classes, or there are no samples.
    """
    ids = {name: i for i, name in class_names.items()}
    for i, name in zip(task.classes, task.class_names, strict=True):
        if class_names.get(i, name) != name or ids.get(name, i) != i:
            raise ValueError(
                f"class {i} '{name}' of task '{task.name}' contradicts what was learned: {dict(class_names)}"
            )
    if twice := [name for name, count in Counter(task.class_names).items() if count > 1]:
        raise ValueError(f"two classes of task '{task.name}' are called '{twice[0]}'; class names must differ")
    noun, labels = task.train.noun, set(task.train.labels.unique().tolist())
    if not task.classes and not labels:
        raise ValueError(f"task '{task.name}' has no training {noun}; add some")
    if not task.classes and labels == {UNKNOWN_CLASS}:  # answers have no classes
        return
    if strangers := sorted(labels - set(task.classes)):
        raise ValueError(
            f"a training {noun} of task '{task.name}' has label {strangers[0]}, and its classes are "
            f"{list(task.classes)}; add the class, or leave the {noun} out"
        )
    if empty := [name for i, name in zip(task.classes, task.class_names, strict=True) if i not in labels]:
        raise ValueError(f"class '{empty[0]}' of task '{task.name}' has no training {noun}; add some or leave it out")


def task_record(task: Task, method: Method, fit: Fit, seconds: float) -> TaskRecord:
    """Create the record of a task that a method has just learned.

    Args:
        task: the task.
        method: the method that learned it.
        fit: the training loop that learned it, with its measurements.
        seconds: how long learning took.
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
