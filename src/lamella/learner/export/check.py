"""Whether an export computes what the model computes: their logits on the same random samples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.samples import Samples

__all__ = ["BATCHES", "TOLERANCE", "Check", "compare", "random_samples"]

TOLERANCE = 1e-4
"""Largest difference of logits that is allowed, as a share of the largest logit."""
BATCHES = (1, 5)
"""Numbers of samples that are tried at once."""

Logits = Callable[[Any], Tensor]


class Check(NamedTuple):
    """Largest difference between two models' logits, and the largest logit, over so many samples."""

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
    """Inputs of so many samples as a backbone sees them, drawn at random."""
    return backbone.example(count, generator(0, "export", count))


@torch.no_grad()
def compare(own: Logits, exported: Logits, backbone: Backbone) -> Check:
    """Compare two functions from samples, as the backbone takes them, to logits (n, classes).

    Raises:
        RuntimeError: they differ by more than the tolerance.
    """
    pairs = [(own(x).float().cpu(), exported(x).float().cpu()) for x in (random_samples(backbone, n) for n in BATCHES)]
    if odd := [(tuple(a.shape), tuple(b.shape)) for a, b in pairs if a.shape != b.shape]:
        raise RuntimeError(f"the export gives logits of the shape {odd[0][1]}, the model of {odd[0][0]}")
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    largest = max(float(a.abs().max()) for a, _ in pairs)
    found = Check(difference, largest, sum(BATCHES), backbone.transform.noun)
    if not found.difference <= found.allowed:  # also where it is not a number
        raise RuntimeError(f"the export does not compute what the model computes, so it was not kept: {found}")
    return found
