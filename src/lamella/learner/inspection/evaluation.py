"""How good a model is on given images: accuracy, which classes it takes for which, how sure it may be, what it misses.

calibration error   sum over bins of confidence of n_bin / n |accuracy - mean confidence| (Naeini et al., AAAI 2015;
                    Guo et al., ICML 2017): 0 where the model is right as often as it says
called unknown      familiarity below a threshold: wrong for classes that were learned, right for all others
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from lamella.data.images import ImageSet, TensorSet, data_sha256
from lamella.data.sources.load import load_source
from lamella.learner.model import Model
from lamella.learner.predictions import Prediction, predict

__all__ = ["BINS", "Bin", "Counted", "Evaluation", "Measured", "evaluate", "images_to_measure"]

BINS = 15


@dataclass(frozen=True)
class Counted:
    """A class, or a task with all images of its classes.

    Attributes:
        images: how many. right: of them. right_task: whose predicted class belongs to the task (of a class: to a task
            that has the class). unknown: called unknown.
    """

    name: str
    images: int
    right: int
    right_task: int
    unknown: int

    @property
    def accuracy(self) -> float:
        return self.right / self.images


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence.

    Attributes:
        low, high: confidences above low, up to high. accuracy, confidence: means, 0..1; 0 where there is no image.
    """

    low: float
    high: float
    images: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Stranger:
    """A class that was never learned: how many of its images are called unknown, and what most are taken for."""

    name: str
    images: int
    unknown: int
    taken_for: str


@dataclass(frozen=True)
class Evaluation:
    """What was measured; everything but `strangers` is about images of classes that were learned.

    Attributes:
        images, right, unknown: of all of them. unknown_below: the familiarity under which an image is called unknown;
            None where the model cannot tell. confidence: mean. calibration_error: 0..1, over `bins`.
        classes: those with images, in the order of learning. tasks: likewise.
        columns: every class of the model. confusion: (class, predicted class, images) of all pairs that occur.
        strangers: classes that the model never learned, with the class each is taken for most.
    """

    images: int
    right: int
    unknown: int
    unknown_below: float | None
    confidence: float
    calibration_error: float
    bins: tuple[Bin, ...]
    classes: tuple[Counted, ...]
    tasks: tuple[Counted, ...]
    columns: tuple[str, ...]
    confusion: tuple[tuple[str, str, int], ...]
    strangers: tuple[Stranger, ...]

    @property
    def accuracy(self) -> float:
        return self.right / self.images


class Measured(NamedTuple):
    """Images to measure on, the names of their labels, and which part of the data they are."""

    images: ImageSet | TensorSet
    class_names: tuple[str, ...]
    part: str


def images_to_measure(data: str, learned: Collection[str]) -> Measured:
    """The test part of a data set; where it has none, all of it, less what the model learned from.

    Args:
        data: as for `load_source`. learned: `data_sha256` of the training images of each task.

    Raises:
        FileNotFoundError, ValueError: as `load_source`.
    """
    try:
        whole = load_source(data, test_fraction=0.0)
    except ValueError:  # this data set has its own test part and no such option, or cannot be read at all
        whole = load_source(data)
    if len(whole.test):
        return Measured(whole.test, whole.class_names, "its test part")
    try:
        split = load_source(data)
    except ValueError:  # a class has one image: nothing could be held back, so `lamella learn` refused it too
        return Measured(whole.train, whole.class_names, "all of it")
    if data_sha256(split.train, dict(enumerate(split.class_names))) in learned:
        return Measured(split.test, split.class_names, "what was held back when it was learned")
    return Measured(whole.train, whole.class_names, "all of it")


def evaluate(
    model: Model, images: ImageSet | TensorSet, class_names: Sequence[str], *, unknown_below: float = 0.05
) -> Evaluation:
    """Predict every image and compare with its label.

    Args:
        images: labelled 0.. in the order of `class_names`; classes that were never learned are counted apart.

    Raises:
        ValueError: no image is of a class that was learned, or one cannot be decoded (it is named).
    """
    known = set(model.class_names.values())
    labels: list[int] = images.labels.tolist()
    names = [class_names[label] for label in labels]
    if not known.intersection(names):
        there = ", ".join(sorted(set(names))[:5]) or "no image"
        raise ValueError(
            f"none of the classes here was learned, so nothing can be measured: {there}; "
            f"this model knows {', '.join(sorted(known)[:5]) or 'nothing yet'}"
        )
    guesses = predict(model, images, top=1)
    seen: dict[str, list[Prediction]] = {}
    for name, guess in zip(names, guesses, strict=True):
        seen.setdefault(name, []).append(guess)
    tells = guesses[0].familiarity is not None
    return _evaluation(model, seen, unknown_below, tells)


def _evaluation(model: Model, seen: Mapping[str, list[Prediction]], below: float, tells: bool) -> Evaluation:
    """What follows from the predictions for each class's images."""
    columns = tuple(model.class_names.values())
    position = {name: i for i, name in enumerate(columns)}
    known = {name: seen[name] for name in columns if name in seen}
    tasks = [(task.name, {model.class_names[c] for c in task.classes}) for task in model.tasks]
    beside = {name: set[str]().union(*(classes for _, classes in tasks if name in classes)) for name in known}
    classes = [_counted(name, {name: own}, beside[name], below) for name, own in known.items()]
    of_tasks = [
        _counted(name, {c: own for c, own in known.items() if c in members}, members, below) for name, members in tasks
    ]
    images = sum(line.images for line in classes)
    bins = _bins([(guess.confidences[0], guess.classes[0] == name) for name, own in known.items() for guess in own])
    taken = Counter((name, guess.classes[0]) for name, own in known.items() for guess in own)
    return Evaluation(
        images, sum(line.right for line in classes), sum(line.unknown for line in classes), below if tells else None,
        confidence=sum(b.images * b.confidence for b in bins) / images,
        calibration_error=sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / images,
        bins=bins, classes=tuple(classes), tasks=tuple(line for line in of_tasks if line.images), columns=columns,
        confusion=tuple((*p, taken[p]) for p in sorted(taken, key=lambda p: (position[p[0]], position[p[1]]))),
        strangers=tuple(_stranger(name, own, below) for name, own in seen.items() if name not in position),
    )  # fmt: skip


def _counted(name: str, seen: Mapping[str, list[Prediction]], right_task: Collection[str], below: float) -> Counted:
    """What is right of these classes' images; `right_task`: the predictions that are of the right task."""
    pairs = [(of, guess) for of, own in seen.items() for guess in own]
    right = sum(guess.classes[0] == of for of, guess in pairs)
    of_task = sum(guess.classes[0] in right_task for _, guess in pairs)
    return Counted(name, len(pairs), right, of_task, _unknown([guess for _, guess in pairs], below))


def _stranger(name: str, own: Sequence[Prediction], below: float) -> Stranger:
    most, _ = Counter(guess.classes[0] for guess in own).most_common(1)[0]
    return Stranger(name, len(own), _unknown(own, below), most)


def _unknown(guesses: Iterable[Prediction], below: float) -> int:
    return sum(guess.familiarity is not None and guess.familiarity < below for guess in guesses)


def _bins(sure: Sequence[tuple[float, bool]]) -> tuple[Bin, ...]:
    """`BINS` equal ranges of confidence, and what is in each of (confidence, whether it is right)."""
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, right in sure:
        inside[min(max(ceil(confidence * BINS) - 1, 0), BINS - 1)].append((confidence, right))
    return tuple(
        Bin(i / BINS, (i + 1) / BINS, len(of), _mean([right for _, right in of]), _mean([c for c, _ in of]))
        for i, of in enumerate(inside)
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
