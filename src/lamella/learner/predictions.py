"""Predictions of a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lamella.data.images import Files, ImageSet
from lamella.data.loading import Examples
from lamella.data.texts import TextSet, normal_text
from lamella.data.transform import of_images
from lamella.learner.confidence import Confidence
from lamella.learner.model import Model
from lamella.learner.records import TaskRecord

__all__ = ["Prediction", "as_predictions", "predict"]


class Prediction(NamedTuple):
    """What a sample looks like.

    Attributes:
        classes: the names of the most likely classes, best first.
        confidences: the confidence of each of them, 0..1. Over all learned classes they sum to 1. They are calibrated
            if samples were held back while tasks were learned, else mostly far too high.
        task: the name of the task that taught the first class.
        familiarity: the rank of the sample among held-back ones, above 0 and at most 1: about this share of them looked
            at least as strange. None if none were held back.
    """

    classes: tuple[str, ...]
    confidences: tuple[float, ...]
    task: str
    familiarity: float | None = None


def predict(model: Model, samples: Sequence[str | Path] | Examples, *, top: int) -> list[Prediction]:
    """Class names with confidences; arguments and errors are those of `Learner.predict`."""
    model.check_whole()
    if not model.tasks:
        raise ValueError("this model has learned nothing yet; give it a task first")
    data = samples if isinstance(samples, Examples) else _as_samples(model, samples)
    if not len(data):
        raise ValueError(f"there is no {data.noun} to predict; give at least one")
    logits, typicality = model.read(data, model.fit(), "predict")
    return as_predictions(
        logits,
        typicality,
        model.method.classes,
        class_names=model.class_names,
        tasks=model.tasks,
        sure=model.confidence,
        top=top,
    )


def _as_samples(model: Model, given: Sequence[str | Path]) -> Examples:
    """Return the images of files, or, for a model of texts, the texts themselves.

    Raises:
        ValueError: the model takes samples of another kind, or one of the texts is a path or empty.
    """
    if model.backbone.transform.noun == "text":
        return _as_texts(given)
    of_images(model.backbone.transform, "a list of files")
    return ImageSet.unlabelled(Files([Path(path) for path in given]))


def _as_texts(given: Sequence[str | Path]) -> TextSet:
    texts = [normal_text(text) for text in given if isinstance(text, str)]
    if len(texts) < len(given) or not all(texts):
        wrong = next(text for text in given if not isinstance(text, str) or not normal_text(text))
        raise ValueError(f"this model takes texts that are not empty, not {wrong!r}")
    return TextSet.unlabelled(texts)


def as_predictions(
    logits: Tensor,
    typicality: Tensor,
    classes: Sequence[int],
    *,
    class_names: Mapping[int, str],
    tasks: Sequence[TaskRecord],
    sure: Confidence,
    top: int,
) -> list[Prediction]:
    """Convert logits to predictions.

    Args:
        logits: `(n, classes)`.
        typicality: `(n,)`.
        classes: the global id of each column of `logits`.
        class_names: the name of each global id.
        tasks: the records of all tasks, oldest first.
        sure: the confidence of the model.
        top: how many classes a prediction names, at least 1.

    Returns:
        One prediction for each sample.

    Raises:
        ValueError: a confidence is not finite, because the model's numbers are not.
    """
    confidences, columns = (logits / sure.temperature).softmax(1).topk(min(top, len(classes)), dim=1)
    if not confidences.isfinite().all():
        raise ValueError(
            "the model gives no confidence, because some of its learned numbers are not finite; go back to an earlier "
            "version (lamella rollback), or get the model again"
        )
    familiarity = sure.familiarity(typicality)
    known = [None] * len(logits) if familiarity is None else familiarity.tolist()
    task_of = {c: task.name for task in tasks for c in task.classes}
    predictions: list[Prediction] = []
    for best, confidence, familiar in zip(columns.tolist(), confidences.tolist(), known, strict=True):
        ids = [classes[column] for column in best]
        names = tuple(class_names[i] for i in ids)
        predictions.append(Prediction(names, tuple(confidence), task_of[ids[0]], familiar))
    return predictions
