"""Checks that an export computes the same logits as the model, on random samples."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.methods.shared.heads import OTHER_TASK_PENALTY

__all__ = ["BATCHES", "TOLERANCE", "Check", "compare", "random_samples"]

TOLERANCE = 1e-4
"""The largest allowed difference of logits, as a share of the largest logit of a class that is not ruled out."""
BATCHES = (1, 5)
"""The sizes of the batches that are compared."""

Logits = Callable[[Any], Tensor]


class Check(NamedTuple):
    """The result of a comparison.

    Attributes:
        difference: the largest difference between the logits of classes that the model does not rule out for a sample.
        largest: the largest absolute value of these logits.
        samples: the number of samples.
        noun: the word for a sample, such as "image".
    """

    difference: float
    largest: float
    samples: int
    noun: str = "sample"

    @property
    def allowed(self) -> float:
        return TOLERANCE * self.largest

    def __str__(self) -> str:
        return (
            f"largest difference of logits {self.difference:.1e} on {self.samples} random {self.noun}s, "
            f"logits up to {self.largest:.3g}; allowed {self.allowed:.1e}"
        )


def random_samples(backbone: Backbone, count: int) -> Samples:
    """Return the inputs of `count` random samples, as a backbone takes them."""
    return backbone.example(count, generator(0, "export", count))


@torch.no_grad()
def compare(own: Logits, exported: Logits, backbone: Backbone) -> Check:
    """Compare two functions from samples to logits (n, classes).

    A method that chooses a task for each sample puts the logits of all other tasks far below. They are compared by the
    size of that distance, since their rounding grows with it, and all others by their own size.

    Args:
        own: the prediction of the model.
        exported: the prediction of the export.
        backbone: makes the samples.

    Raises:
        RuntimeError: the logits differ by more than the tolerance.
    """
    pairs = [(own(x).float().cpu(), exported(x).float().cpu()) for x in (random_samples(backbone, n) for n in BATCHES)]
    if odd := [(tuple(a.shape), tuple(b.shape)) for a, b in pairs if a.shape != b.shape]:
        raise RuntimeError(f"the export gives logits of the shape {odd[0][1]}, the model of {odd[0][0]}")
    every = _checked(backbone, pairs)
    kept = [a > a.amax(1, keepdim=True) - OTHER_TASK_PENALTY for a, _ in pairs]
    if all(mask.all() for mask in kept):
        return every
    return _checked(backbone, [(a[mask], b[mask]) for (a, b), mask in zip(pairs, kept, strict=True)])


def _checked(backbone: Backbone, pairs: Sequence[tuple[Tensor, Tensor]]) -> Check:
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    largest = max(float(a.abs().max()) for a, _ in pairs)
    found = Check(difference, largest, sum(BATCHES), backbone.transform.noun)
    if not found.difference <= found.allowed:  # NaN is refused too
        raise RuntimeError(f"the export does not compute what the model computes, so it was not kept: {found}")
    return found
