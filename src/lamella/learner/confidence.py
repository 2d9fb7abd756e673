"""How sure a model may be: a temperature for its logits, and how familiar an image is, both from images held back.

Images are held back while a task is learned, looked at once, and forgotten; what stays is a record of numbers.

    temperature     T: softmax(logits / T) is right as often as it says (Guo et al., ICML 2017, arXiv 1706.04599)
    typicality      a score that is low for images like none that were learned: see `Method.logits_and_typicality`
    familiarity     0..1, the share of held-back images that were as untypical or more: below 0.05, one known image in
                    twenty is called unknown
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["UNKNOWN", "Confidence", "HeldOut", "fitted_temperature", "histogram"]

UNKNOWN = 0.05
"""Familiarity below which an image is called unknown: one known image in twenty is, too."""
BINS = 64
ENOUGH = 30
"""Images from which a temperature is taken."""


@dataclass(frozen=True)
class HeldOut:
    """What is kept of the samples of a task that were held out while it was learned.

    Attributes:
        images: how many there were, at least 1.
        right: of them, when the task had just been learned, all classes competing.
        temperature: at which the confidences fit them best, above 0; see `fitted_temperature`.
        typicality: a `histogram` of how typical they look.
    """

    images: int
    right: int
    temperature: float
    typicality: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """The share that was right, 0..1."""
        return self.right / self.images


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """T at which softmax(logits / T) fits best.

    The cross-entropy is convex in 1 / T; a little of each label, 1 / (n + 2) in all, is spread over the classes
    (Laplace's rule), so that T stays above 0 where every image is right.

    Args:
        logits: (n, c), n and c at least 1. labels: (n,) columns.
    """
    z = logits.double() - logits.double().mean(1, keepdim=True)
    n, spread = len(z), 1 / (len(z) + 2)
    wanted = (1 - spread) * z[torch.arange(n), labels] + spread * z.mean(1)
    if float(z.abs().max()) == 0:
        return 1.0
    low, high = -20.0, 20.0  # log of 1 / T, in units of the logits' own size
    unit = float(z.std())
    for _ in range(60):
        middle = (low + high) / 2
        p = (z * (math.exp(middle) / unit)).softmax(1)
        too_sharp = ((p * z).sum(1) - wanted).mean() > 0
        low, high = (low, middle) if too_sharp else (middle, high)
    return unit * math.exp(-(low + high) / 2)


def histogram(scores: Tensor) -> dict[str, Any]:
    """What is kept of scores (n,): their range, and how many fall into each of equal bins."""
    low, high = float(scores.min()), float(scores.max())
    counts = torch.histc(scores.double(), BINS, low, high) if high > low else torch.tensor([float(len(scores))])
    return {"low": low, "high": high, "counts": [int(c) for c in counts]}


class Confidence:
    """What the held-out samples of all tasks say together.

    Args:
        records: of the tasks that had samples held out, oldest first.
    """

    def __init__(self, records: Sequence[HeldOut]) -> None:
        self.records = list(records)

    @property
    def temperature(self) -> float:
        """Of the newest task, at which all classes competed; 1 where nothing was held back.

        Where that task had few images, of the newest tasks that had `ENOUGH` together: their geometric mean by images.
        """
        images, sum_ = 0, 0.0
        for record in reversed(self.records):
            images, sum_ = images + record.images, sum_ + record.images * math.log(record.temperature)
            if images >= ENOUGH:
                break
        return math.exp(sum_ / images) if images else 1.0

    def familiarity(self, typicality: Tensor) -> Tensor | None:
        """(n,) 0..1 of scores (n,); None where nothing was held back."""
        if not self.records:
            return None
        images = sum(r.images for r in self.records)
        return torch.stack([_at_or_below(r.typicality, typicality) for r in self.records]).sum(0) / images


def _at_or_below(held: Mapping[str, Any], scores: Tensor) -> Tensor:
    """(n,) how many of a histogram's scores are at most as high; within a bin, by its share."""
    counts, x = torch.tensor(held["counts"], dtype=torch.float64), scores.double().cpu()
    below = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    width = (held["high"] - held["low"]) / len(counts)
    if width == 0:
        return torch.where(x >= held["low"], below[-1], below[0])
    place = ((x - held["low"]) / width).clamp(0, len(counts))
    bin_ = place.long().clamp(max=len(counts) - 1)
    return below[bin_] + counts[bin_] * (place - bin_)
