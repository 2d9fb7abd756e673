"""Calibrated confidences and the familiarity of an image, both computed from held-back images.

Some images are held back while a task is learned: the model is not trained on them.

    temperature     T, so that softmax(logits / T) is calibrated (Guo et al., ICML 2017, arXiv 1706.04599)
    typicality      a score that is low for images unlike all learned ones; see `Method.typicality`
    familiarity     above 0, at most 1: the rank of an image's typicality among those of the held-back images. With a
                    threshold of 0.05, one in twenty images of known classes is called unknown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ENOUGH",
    "FEWEST",
    "UNKNOWN",
    "Confidence",
    "HeldBackScore",
    "fitted_temperature",
    "histogram",
    "of_records",
]

UNKNOWN = 0.05
"""The familiarity below which an image is called unknown. So is one in twenty images of known classes."""
FEWEST = int(1 / UNKNOWN)
"""The number of held-back images below which no image is called unknown: no familiarity is below 1 / (n + 1)."""
BINS = 64
ENOUGH = 30
"""The number of held-back images from which a temperature is well estimated."""
LEAST = 0.05
"""How far the mean confidence stays above that of guessing, as a share of the way to certainty."""


@dataclass(frozen=True)
class HeldBackScore:
    """What was measured on the held-back samples of a task, just after it was learned.

    Attributes:
        images: how many samples were held back, at least 1.
        right: how many of them were classified correctly among all classes.
        temperature: the temperature that fits them, above 0; see `fitted_temperature`. None where the features of
            held-back samples are kept, so that it is computed anew after every task.
        typicality: the `histogram` of their typicality; None likewise.
    """

    images: int
    right: int
    temperature: float | None = None
    typicality: Mapping[str, Any] | None = None

    @property
    def accuracy(self) -> float:
        """The share that was classified correctly, 0..1."""
        return self.right / self.images


class Confidence:
    """The confidence and familiarity of predictions.

    Args:
        temperature: T, above 0.
        typicality: (n,) the typicality of held-back samples, in any order; None if there are none.

    Attributes:
        temperature: as above.
        images: the number of held-back samples.
    """

    def __init__(self, temperature: float = 1.0, typicality: Tensor | None = None) -> None:
        self.temperature = temperature
        self._known = None if typicality is None else typicality.double().cpu().sort().values

    @property
    def images(self) -> int:
        return 0 if self._known is None else len(self._known)

    def familiarity(self, typicality: Tensor) -> Tensor | None:
        """Return the familiarity of samples, (n,) above 0 and at most 1; None if no samples were held back.

        It is (r + 1) / (n + 1), where r of n held-back samples are at most as typical. An image like these has every
        such value with the same probability (a conformal p-value).

        Args:
            typicality: (n,), the typicality of the samples.
        """
        if self._known is None or not len(self._known):
            return None
        ranks = torch.searchsorted(self._known, typicality.double().cpu(), right=True)
        return (ranks + 1).double() / (len(self._known) + 1)


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """Fit the temperature T at which the mean confidence is the accuracy.

    The confidence of a sample is the largest of softmax(logits / T), whose mean falls as T rises, so bisection finds T.
    The accuracy is estimated by Laplace's rule, (right + 1) / (n + 2), so that few samples cannot lead to certainty.
    A single sample that is wrong by a large margin counts as one error, whatever the margin is.

    Args:
        logits: (n, c), with n and c at least 1.
        labels: (n,) int64, the column of each sample's class.

    Returns:
        The temperature, above 0; 1 if all logits of each sample are equal.
    """
    z = logits.double() - logits.double().amax(1, keepdim=True)
    unit = float(-z.min())
    if unit == 0:
        return 1.0
    n, classes = z.shape
    right = int((logits.argmax(1) == labels).sum())
    # Below, no temperature gives such a mean confidence: that of guessing is 1 / classes.
    wanted = max((right + 1) / (n + 2), 1 / classes + (1 - 1 / classes) * LEAST)
    low, high = -30.0, 30.0  # bounds on log T, with T in units of the largest difference of logits
    for _ in range(60):
        middle = (low + high) / 2
        too_sure = float((z / (unit * math.exp(middle))).softmax(1).amax(1).mean()) > wanted
        low, high = (middle, high) if too_sure else (low, middle)
    return unit * math.exp((low + high) / 2)


def histogram(scores: Tensor) -> dict[str, Any]:
    """Summarise scores by their range and by the counts of bins of equal width.

    Args:
        scores: (n,), n at least 1.

    Returns:
        The "low" and "high" end of the range, and the "counts".
    """
    low, high = float(scores.min()), float(scores.max())
    counts = torch.histc(scores.double(), BINS, low, high) if high > low else torch.tensor([float(len(scores))])
    return {"low": low, "high": high, "counts": [int(c) for c in counts]}


def of_records(records: Sequence[HeldBackScore]) -> Confidence:
    """Return the confidence of a model whose held-back features are not kept, from the records of its tasks.

    The temperature is the geometric mean of those of the newest tasks with `ENOUGH` samples together, weighted by
    samples. The typicality is that of the newest task, because it has another scale after every task.

    Args:
        records: of the tasks that had held-back samples, oldest first.
    """
    told = [record for record in records if record.temperature is not None and record.typicality is not None]
    images, sum_ = 0, 0.0
    for record in reversed(told):
        images, sum_ = images + record.images, sum_ + record.images * math.log(record.temperature or 1.0)
        if images >= ENOUGH:
            break
    return Confidence(math.exp(sum_ / images), _spread(told[-1].typicality or {})) if images else Confidence()


def _spread(held: Mapping[str, Any]) -> Tensor:
    """Return scores with this histogram: those of a bin are evenly spread over it."""
    width = (held["high"] - held["low"]) / len(held["counts"])
    parts = [
        held["low"] + width * (bin_ + (torch.arange(count, dtype=torch.float64) + 0.5) / count)
        for bin_, count in enumerate(held["counts"])
        if count
    ]
    return torch.cat(parts)
