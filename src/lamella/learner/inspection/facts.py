"""What a model says of itself: the ledger of its tasks, what is left for more of them, and how alike they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.learner.inspection.directions import Forecast, Overlap, Space, forecast, overlap, spaces
from lamella.learner.model import Model
from lamella.learner.store.versions import history, load_manifest

__all__ = ["Inspection", "LearnedTask", "Origin", "inspect", "origins"]


@dataclass(frozen=True)
class Origin:
    """The version of a model that learning a task made.

    Attributes:
        version: its number. made: when, local time. bytes: of its state, all tasks until then together.
    """

    version: int
    made: str
    bytes: int


@dataclass(frozen=True)
class LearnedTask:
    """One line of the ledger.

    Attributes:
        images: learned from. unreadable: files that were left out since they cannot be read. seconds: of learning.
        trained: parameters of the call that trained most.
        data_sha256: see `data.images.data_sha256`; None where an older version learned the task.
        held_back: images that were held back. right: of them, when the task had just been learned. temperature: the one
            that fits them best. All three None where none were held back.
        origin: None where that version is gone.
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

    @property
    def accuracy(self) -> float | None:
        """On the images held back, 0..1, among all classes known then."""
        return self.right / self.held_back if self.held_back and self.right is not None else None


@dataclass(frozen=True)
class Inspection:
    """What a model says of itself.

    Attributes:
        method: with its parts. backbone, weights_sha256: what it was built on.
        parameters: numbers that a prediction needs, by part. temperature: of its confidences.
        spaces: by layer; empty where the method protects no directions. forecast, overlap: None where they have no
            meaning for the method, or nothing is known.
    """

    method: str
    backbone: str
    weights_sha256: str
    classes: tuple[str, ...]
    temperature: float
    parameters: dict[str, int]
    tasks: tuple[LearnedTask, ...]
    spaces: tuple[Space, ...]
    forecast: Forecast | None
    overlap: Overlap | None


def inspect(model: Model, found: Sequence[Origin | None] = ()) -> Inspection:
    """The facts of a learner; `found`: where each of its tasks comes from, see `origins`."""
    places = found or [None] * len(model.tasks)
    known = spaces(model.method, [task.directions for task in model.tasks])
    return Inspection(
        model.name, model.backbone.name, model.backbone.weights_sha256, tuple(model.class_names.values()),
        model.confidence.temperature, model.parameter_counts(),
        tuple(_learned(model, i, origin) for i, origin in enumerate(places)),
        known, forecast(model.method, known), overlap(model.method, len(model.tasks)),
    )  # fmt: skip


def _learned(model: Model, number: int, origin: Origin | None) -> LearnedTask:
    task = model.tasks[number]
    held = task.held_back
    return LearnedTask(
        name=task.name,
        classes=tuple(model.class_names[c] for c in task.classes),
        images=task.images,
        unreadable=task.unreadable.images if task.unreadable else 0,
        seconds=task.seconds["total"],
        trained=task.trainable_parameters,
        data_sha256=task.data_sha256,
        held_back=held.images if held else None,
        right=held.right if held else None,
        temperature=held.temperature if held else None,
        origin=origin,
    )


def origins(folder: Path) -> list[Origin | None]:
    """For each task of the model at `folder`, the oldest version that leads to the current one and ends with the task.

    None where that version was not kept, or where several tasks were learned before one was saved.

    Raises:
        FileNotFoundError, ValueError: as `store.history`.
    """
    current = load_manifest(folder)
    tasks, found = current["tasks"], dict[int, Origin]()
    for version in history(folder):
        theirs = load_manifest(folder, version.number)["tasks"]
        # Equal records, not names: what was rolled back may have been learned again under the same name.
        if version.number <= current["version"] and theirs == tasks[: len(theirs)]:
            found.setdefault(len(theirs) - 1, Origin(version.number, version.made, version.bytes))
    return [found.get(number) for number in range(len(tasks))]
