"""Calibrated confidences and the familiarity of an image, both computed from held-out images.

Some images are held out while a task is learned. They are predicted once and then dropped; only statistics are kept.

    temperature     T, so that softmax(logits / T) is calibrated (Guo et al., ICML 2017, arXiv 1706.04599)
    typicality      a score that is low for images unlike all learned ones; see `Method.logits_and_typicality`
    familiarity     0..1, the share of held-out images whose typicality is at most as high. With a threshold of 0.05,
                    one in twenty images of known classes is called unknown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["UNKNOWN", "Confidence", "HeldOut", "fitted_temperature", "histogram"]

UNKNOWN = 0.05
"""The familiarity below which an image is called unknown. So is one in twenty images of known classes."""
BINS = 64
ENOUGH = 30
"""The number of images that a temperature is estimated from, if there are as many."""


@dataclass(frozen=True)
class HeldOut:
    """The statistics of the held-out samples of a task.

    Attributes:
        images: how many samples were held out, at least 1.
        right: how many of them were classified correctly among all classes, just after the task was learned.
        temperature: the temperature that fits them best, above 0; see `fitted_temperature`.
        typicality: the `histogram` of their typicality.
    """

    images: int
    right: int
    temperature: float
    typicality: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """The share that was classified correctly, 0..1."""
        return self.right / self.images


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """Fit the temperature T that minimises the cross-entropy of softmax(logits / T).

    The cross-entropy is convex in 1 / T, so bisection finds the minimum. The share 1 / (n + 2) of each label is spread
    over all classes (Laplace's rule), so that T stays above 0 even if every sample is classified correctly.

    Args:
        logits: `(n, c)`, with n and c at least 1.
        labels: `(n,)` int64, the column of each sample's class.

    Returns:
        The temperature, above 0; 1 if all logits of each sample are equal.
    """
    z = logits.double() - logits.double().mean(1, keepdim=True)
    n, spread = len(z), 1 / (len(z) + 2)
    wanted = (1 - spread) * z[torch.arange(n), labels] + spread * z.mean(1)
    if float(z.abs().max()) == 0:
        return 1.0
    low, high = -20.0, 20.0  # bounds on log(1 / T), with logits in units of their standard deviation
    unit = float(z.std())
    for _ in range(60):
        middle = (low + high) / 2
        p = (z * (math.exp(middle) / unit)).softmax(1)
        too_sharp = ((p * z).sum(1) - wanted).mean() > 0
        low, high = (low, middle) if too_sharp else (middle, high)
    return unit * math.exp(-(low + high) / 2)


def histogram(scores: Tensor) -> dict[str, Any]:
    """Summarise scores by their range and by the counts of bins of equal width.

    Args:
        scores: `(n,)`, n at least 1.

    Returns:
        The "low" and "high" end of the range, and the "counts".
    """
    low, high = float(scores.min()), float(scores.max())
    counts = torch.histc(scores.double(), BINS, low, high) if high > low else torch.tensor([float(len(scores))])
    return {"low": low, "high": high, "counts": [int(c) for c in counts]}


class Confidence:
    """The confidence and familiarity of predictions, from the held-out samples of all tasks.

    Args:
        records: the statistics of the tasks that had held-out samples, oldest first.
    """

    def __init__(self, records: Sequence[HeldOut]) -> None:
        self.records = list(records)

    @property
    def temperature(self) -> float:
        """The temperature of the newest task, whose samples were classified among all classes; 1 without samples.

        If that task had fewer than `ENOUGH` held-out samples, further tasks are included until there are as many. The
        result is then the geometric mean of their temperatures, weighted by samples.
        """
        images, sum_ = 0, 0.0
        for record in reversed(self.records):
            images, sum_ = images + record.images, sum_ + record.images * math.log(record.temperature)
            if images >= ENOUGH:
                break
        return math.exp(sum_ / images) if images else 1.0

    def familiarity(self, typicality: Tensor) -> Tensor | None:
        """Return the familiarity of samples, `(n,)` in 0..1; None if no samples were held out.

        Args:
            typicality: `(n,)`, the typicality of the samples.
        """
        if not self.records:
            return None
        images = sum(r.images for r in self.records)
        return torch.stack([_at_or_below(r.typicality, typicality) for r in self.records]).sum(0) / images


def _at_or_below(held: Mapping[str, Any], scores: Tensor) -> Tensor:
    """Count how many scores of a histogram are at most as high, `(n,)`. Within a bin, interpolate linearly."""
    counts, x = torch.tensor(held["counts"], dtype=torch.float64), scores.double().cpu()
    below = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    width = (held["high"] - held["low"]) / len(counts)
    if width == 0:
        return torch.where(x >= held["low"], below[-1], below[0])
    place = ((x - held["low"]) / width).clamp(0, len(counts))
    bin_ = place.long().clamp(max=len(counts) - 1)
    return below[bin_] + counts[bin_] * (place - bin_)
