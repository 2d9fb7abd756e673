"""Evaluation of a model on labelled images: accuracy, confusion matrix, calibration, and detection of unknown images.

calibration error   sum over bins of confidence of n_bin / n |accuracy - mean confidence| (Naeini et al., AAAI 2015;
                    Guo et al., ICML 2017). It is 0 if the confidence of every bin equals its accuracy.
called unknown      the familiarity is below a threshold. This is wrong for images of learned classes and right for all
                    others.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch

from lamella.common.words import all_of, many
from lamella.data.images import data_sha256
from lamella.data.loading import Examples
from lamella.data.sources.readable import ReadableData, load_readable
from lamella.learner.model import Model
from lamella.learner.predictions import Prediction, predict

__all__ = ["BINS", "Bin", "Counted", "Evaluation", "MeasuredSamples", "evaluate", "images_to_measure"]

BINS = 15


@dataclass(frozen=True)
class Counted:
    """The counts of one class, or of all classes of one task.

    Attributes:
        name: the name of the class or the task.
        images: how many images there are.
        right: how many of them are classified correctly.
        right_task: for how many of them the predicted class belongs to the task; for a class, to a task that has it.
        unknown: how many of them are called unknown.
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
    """The predictions whose confidence lies in one interval.

    Attributes:
        low: the lower end of the interval, exclusive.
        high: the upper end of the interval, inclusive.
        images: how many images fall into it.
        accuracy: the share of them that is classified correctly, 0..1; 0 if there are none.
        confidence: their mean confidence, 0..1; 0 if there are none.
    """

    low: float
    high: float
    images: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Stranger:
    """The counts of a class that was never learned.

    Attributes:
        name: the name of the class.
        images: how many images there are.
        unknown: how many of them are called unknown.
        taken_for: the class that is predicted most often.
    """

    name: str
    images: int
    unknown: int
    taken_for: str


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. All fields except `strangers` are about images of learned classes.

    Attributes:
        images: how many images there are.
        right: how many of them are classified correctly.
        unknown: how many of them are called unknown.
        unknown_below: the familiarity below which an image is called unknown, 0..1; None if the model has no measure of
            familiarity.
        confidence: the mean confidence, 0..1.
        calibration_error: the expected calibration error over `bins`, 0..1.
        bins: the predictions by confidence.
        classes: the classes with images, in the order of learning.
        tasks: the tasks with images, in the order of learning.
        columns: the names of all classes of the model.
        confusion: triples (class, predicted class, number of images) for all pairs that occur.
        strangers: the classes that the model never learned.
        separation: how well familiarity tells these two kinds of images apart: the probability that an image of a
            learned class has the larger one, ties counted half (the area under the ROC curve). 1 is perfect, 0.5 is
            chance. None if there are no images of other classes, or the model has no measure of familiarity.
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
    separation: float | None = None

    @property
    def accuracy(self) -> float:
        return self.right / self.images

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the accuracies of the classes, in which a class with few images counts as much as any other."""
        return sum(line.accuracy for line in self.classes) / len(self.classes)


class MeasuredSamples(NamedTuple):
    """The images for an evaluation.

    Attributes:
        images: the labelled images.
        class_names: the name of each label.
        part: a short text that says which part of the data the images are.
    """

    images: Examples
    class_names: tuple[str, ...]
    part: str


def images_to_measure(data: str, model: Model, **options: str) -> MeasuredSamples:
    """Return the test part of a data set, or all of it if it has none, without images that the model was trained on.

    Args:
        data: a data set as `load_source` takes it.
        model: the model that is measured.
        options: how it is read, as `load_source` takes it, such as the layout of a folder or the columns of a table.

    Raises:
        FileNotFoundError: the data set is missing.
        ValueError: the data set cannot be read, or the model was trained on all of it.
    """
    found = load_readable(data, takes=model.backbone.transform.noun, **options)
    whole = found.whole
    model.check_takes(whole)
    images, part = (whole.test, "its test part") if len(whole.test) else (whole.train, "all of it")
    if not len(whole.test) and _was_learned_by_name(found, model):
        images, part = found.divided().test, "its held-back part"
    trained = model.seen.trained_on()
    new = [i for i, key in enumerate(images.keys) if found.digests[key] not in trained]
    counted = len(images) - len(new)
    left_out = [f"{many(counted, images.noun)} that the model was trained on"] * bool(counted)
    left_out += [f"{many(len(found.unreadable), images.noun)} that cannot be read"] * bool(found.unreadable)
    if not new:
        raise ValueError(
            f"the model was trained on {all_of(len(images), images.noun)} of '{data}', so nothing is measured; "
            f"give {images.noun}s that it has not learned"
        )
    part += f", without {' and '.join(left_out)}" if left_out else ""
    return MeasuredSamples(images.subset(new), whole.class_names, part)


def _was_learned_by_name(data: ReadableData, model: Model) -> bool:
    """Whether a task whose samples' contents are not known was learned from samples with these names.

    Older versions of Lamella kept no contents, and neither does `Learner.learn`, which takes samples of any kind.
    """
    split = data.divided()
    with_contents = set(model.seen.tasks.tolist())
    unknown = {task.data_sha256 for i, task in enumerate(model.tasks) if i not in with_contents}
    return data_sha256(split.train, dict(enumerate(split.class_names))) in unknown


def evaluate(model: Model, images: Examples, class_names: Sequence[str], *, unknown_below: float = 0.05) -> Evaluation:
    """Predict the class of every image and compare it with the label.

    Args:
        model: the model to evaluate.
        images: the images, whose labels are positions in `class_names`. Classes that were never learned are counted
            separately.
        class_names: the name of each label.
        unknown_below: the familiarity below which an image is called unknown, 0..1.

    Raises:
        ValueError: no image belongs to a learned class, or an image cannot be decoded (the message names it).
    """
    known = set(model.class_names.values())
    labels: list[int] = images.labels.tolist()
    names = [class_names[label] for label in labels]
    if not known.intersection(names):
        there = ", ".join(sorted(set(names))[:5]) or f"no {images.noun}"
        raise ValueError(
            f"none of the classes in the data was learned, so nothing can be measured: {there}; "
            f"this model knows {', '.join(sorted(known)[:5]) or 'nothing yet'}"
        )
    guesses = predict(model, images, top=1)
    seen: dict[str, list[Prediction]] = {}
    for name, guess in zip(names, guesses, strict=True):
        seen.setdefault(name, []).append(guess)
    tells = guesses[0].familiarity is not None
    return _evaluation(model, seen, unknown_below, tells)


def _evaluation(model: Model, seen: Mapping[str, list[Prediction]], below: float, tells: bool) -> Evaluation:
    """Compute all figures from the predictions for the images of each class."""
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
        images,
        sum(line.right for line in classes),
        sum(line.unknown for line in classes),
        below if tells else None,
        confidence=sum(b.images * b.confidence for b in bins) / images,
        calibration_error=sum(b.images * abs(b.accuracy - b.confidence) for b in bins) / images,
        bins=bins,
        classes=tuple(classes),
        tasks=tuple(line for line in of_tasks if line.images),
        columns=columns,
        confusion=tuple((*p, taken[p]) for p in sorted(taken, key=lambda p: (position[p[0]], position[p[1]]))),
        strangers=tuple(_stranger(name, own, below) for name, own in seen.items() if name not in position),
        separation=_separation(known.values(), [own for name, own in seen.items() if name not in position]),
    )


def _separation(known: Iterable[Sequence[Prediction]], others: Iterable[Sequence[Prediction]]) -> float | None:
    """Return the area under the ROC curve of familiarity, 0..1; None if there is nothing to compare."""
    own, other = (
        torch.tensor(
            [g.familiarity for guesses in part for g in guesses if g.familiarity is not None], dtype=torch.float64
        )
        for part in (known, others)
    )
    if not len(own) or not len(other):
        return None
    ranks = own.sort().values
    below = torch.searchsorted(ranks, other) + torch.searchsorted(ranks, other, right=True)
    return 1 - float(below.double().mean()) / (2 * len(own))


def _counted(name: str, seen: Mapping[str, list[Prediction]], right_task: Collection[str], below: float) -> Counted:
    """Count the predictions for the images of some classes.

    Args:
        name: the name of the class or the task.
        seen: the predictions by true class.
        right_task: the predicted classes that count as the right task.
        below: the familiarity below which an image is called unknown.
    """
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
    """Sort pairs of (confidence, whether it is right) into `BINS` intervals of equal width."""
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, right in sure:
        inside[min(max(ceil(confidence * BINS) - 1, 0), BINS - 1)].append((confidence, right))
    return tuple(
        Bin(i / BINS, (i + 1) / BINS, len(of), _mean([right for _, right in of]), _mean([c for c, _ in of]))
        for i, of in enumerate(inside)
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
