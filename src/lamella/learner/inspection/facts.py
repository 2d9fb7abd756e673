"""The facts of a model: its tasks, the free directions for further tasks, and the overlap of its tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.learner.inspection.directions import Forecast, Overlap, Space, forecast, overlap, spaces
from lamella.learner.model import Model
from lamella.learner.store.versions import history, load_manifest

__all__ = ["Inspection", "LearnedTask", "Origin", "inspect", "origins"]


@dataclass(frozen=True)
class Origin:
    """The version of a model that was saved when a task had been learned.

    Attributes:
        version: the number of the version.
        made: when it was saved, as "YYYY-MM-DDTHH:MM:SS" in local time.
        bytes: the size of what was stored for it, without what it shares with earlier versions.
    """

    version: int
    made: str
    bytes: int


@dataclass(frozen=True)
class LearnedTask:
    """The facts of one learned task.

    Attributes:
        name: the name of the task.
        classes: the names of its classes.
        images: how many images it was learned from.
        unreadable: how many files were left out because they cannot be read.
        seconds: how long learning took.
        trained: the largest number of parameters that one training call trained.
        data_sha256: the hash of its images, see `data.images.data_sha256`; None if an older version of Lamella learned
            the task.
        held_back: how many images were held back; None if there were none.
        right: how many held-back images were classified correctly just after learning; None if there were none.
        temperature: the temperature that fits the held-back images best, above 0; None if there were none.
        origin: the version that was saved when the task had been learned; None if it does not exist any more.
        loss_before: what its held-back answers cost before it was learned, in nats a token; None if there were none.
        loss_after: the same after it.
    """

    name: str
    classes: tuple[str, ...]
    images: int
    unreadable: int
    seconds: float
    trained: int
    data_sha256: str | None
    held_back: int | None
    right: int | None
    temperature: float | None
    origin: Origin | None
    loss_before: float | None = None
    loss_after: float | None = None

    @property
    def accuracy(self) -> float | None:
        """The accuracy on the held-back images among all classes known then, 0..1; None if there were none."""
        return self.right / self.held_back if self.held_back and self.right is not None else None


@dataclass(frozen=True)
class Inspection:
    """The facts of a model.

    Attributes:
        method: the name of the method with its parts.
        settings: what is set of the method and its parts, by key, such as "rank" or "align.shrinkage".
        backbone: the name of the backbone.
        weights_sha256: the hash of the backbone's weights as they were loaded.
        classes: the names of all learned classes.
        temperature: the temperature of the confidences, above 0.
        parameters: how many numbers a prediction needs, by part of the model.
        tasks: the learned tasks, oldest first.
        most_tasks: how many tasks the method can learn in all; None where there is no such limit.
        spaces: the directions of each layer; empty if the method protects none.
        forecast: how many further tasks fit; None if this has no meaning for the method or is not known.
        overlap: how much the tasks overlap; None if this has no meaning for the method or is not known.
    """

    method: str
    settings: dict[str, Any]
    backbone: str
    weights_sha256: str
    classes: tuple[str, ...]
    temperature: float
    parameters: dict[str, int]
    tasks: tuple[LearnedTask, ...]
    most_tasks: int | None
    spaces: tuple[Space, ...]
    forecast: Forecast | None
    overlap: Overlap | None


def inspect(model: Model, found: Sequence[Origin | None] = ()) -> Inspection:
    """Collect the facts of a model.

    Args:
        model: the model.
        found: the version that each task comes from, see `origins`; empty if this is not known.
    """
    places = found or [None] * len(model.tasks)
    known = spaces(model.method, [task.directions for task in model.tasks])
    return Inspection(
        model.name,
        _settings(model.config["method"]),
        model.backbone.name,
        model.backbone.weights_sha256,
        tuple(model.class_names.values()),
        model.confidence.temperature,
        model.parameter_counts(),
        tuple(_learned(model, i, origin) for i, origin in enumerate(places)),
        model.method.most_tasks,
        known,
        forecast(model.method, known),
        overlap(model.method, len(model.tasks)),
    )


def _settings(table: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """Return by full key what has a value in a table and in the tables within it, without names."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _settings(value, f"{of}{key}.")
        elif value is not None and key != "name":
            found[of + key] = value
    return found


def _learned(model: Model, number: int, origin: Origin | None) -> LearnedTask:
    task = model.tasks[number]
    held, costs = task.held_back, task.held_back_costs
    return LearnedTask(
        name=task.name,
        classes=tuple(model.class_names[c] for c in task.classes),
        images=task.images,
        unreadable=task.unreadable.images if task.unreadable else 0,
        seconds=task.seconds["total"],
        trained=task.trainable_parameters,
        data_sha256=task.data_sha256,
        held_back=held.images if held else costs.answers if costs else None,
        right=held.right if held else None,
        temperature=held.temperature if held else None,
        origin=origin,
        loss_before=costs.before if costs else None,
        loss_after=costs.after if costs else None,
    )


def origins(folder: Path) -> list[Origin | None]:
    """Find for each task the version that was saved when the task had been learned.

    This is the oldest version whose last task is this one, among those with the same history as the current version.

    Args:
        folder: the model's folder.

    Returns:
        One entry for each task; None if the version was not kept, or if several tasks were learned before a version was
        saved.

    Raises:
        FileNotFoundError: there is no model, or one of its files is missing.
        ValueError: the model is damaged.
    """
    current = load_manifest(folder)
    tasks, found = _as_learned(current["tasks"]), dict[int, Origin]()
    for version in history(folder):
        theirs = _as_learned(load_manifest(folder, version.number)["tasks"])
        # Compare whole records, not names: after a rollback a task may be learned again under the same name.
        if version.number <= current["version"] and theirs == tasks[: len(theirs)]:
            found.setdefault(len(theirs) - 1, Origin(version.number, version.made, version.bytes))
    return [found.get(number) for number in range(len(tasks))]


def _as_learned(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return records without what changes later, when classes are merged or dropped, or samples are taken out."""
    later = ("classes", "images", "data_sha256", "held_back")
    return [{key: value for key, value in record.items() if key not in later} for record in records]
