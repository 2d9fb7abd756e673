"""What logits and typicality come to: predictions, and what is kept of images that were held back."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.learner.confidence import Confidence, fitted_temperature, histogram

__all__ = ["Prediction", "as_predictions", "held_back_record"]


class Prediction(NamedTuple):
    """What an image looks like.

    Attributes:
        classes: names, best first. confidences: of them, 0..1, summing to 1 over all classes seen; calibrated where
            images were held back while tasks were learned.
        task: the name of the task that taught the first class.
        familiarity: 0..1, the share of held-back images that looked as strange or stranger; None where none were.
    """

    classes: tuple[str, ...]
    confidences: tuple[float, ...]
    task: str
    familiarity: float | None = None


def as_predictions(
    logits: Tensor, typicality: Tensor, classes: Sequence[int], *, class_names: Mapping[int, str],
    tasks: Sequence[Mapping[str, Any]], sure: Confidence, top: int,
) -> list[Prediction]:  # fmt: skip
    """The best `top` classes of each image.

    Args:
        logits: (n, classes). typicality: (n,). classes: global id of each column.
        class_names: by global id. tasks: records, oldest first. sure: how sure predictions may be.
    """
    confidences, columns = (logits / sure.temperature).softmax(1).topk(min(top, len(classes)), dim=1)
    familiarity = sure.familiarity(typicality)
    known = [None] * len(logits) if familiarity is None else familiarity.tolist()
    task_of = {c: task["name"] for task in tasks for c in task["classes"]}
    predictions: list[Prediction] = []
    for best, confidence, familiar in zip(columns.tolist(), confidences.tolist(), known, strict=True):
        ids = [classes[column] for column in best]
        names = tuple(class_names[i] for i in ids)
        predictions.append(Prediction(names, tuple(confidence), task_of[ids[0]], familiar))
    return predictions


def held_back_record(logits: Tensor, typicality: Tensor, labels: Tensor, classes: Sequence[int]) -> dict[str, Any]:
    """How sure a model may be of its newest task, and how many of its images it gets right.

    Args:
        logits: (n, classes). typicality: (n,). labels: (n,) global class ids. classes: global id of each column.
    """
    column = {c: i for i, c in enumerate(classes)}
    wanted = torch.tensor([column[label] for label in labels.tolist()])
    return {
        "images": len(wanted), "right": int((logits.argmax(1) == wanted).sum()),
        "temperature": fitted_temperature(logits, wanted), "typicality": histogram(typicality),
    }  # fmt: skip
