"""Whether an export computes what the model computes: their logits on the same random images."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lamella.common.randomness import generator

__all__ = ["BATCHES", "TOLERANCE", "Check", "compare", "random_images"]

TOLERANCE = 1e-4
"""Largest difference of logits that is allowed, as a share of the largest logit."""
BATCHES = (1, 5)
"""Numbers of images that are tried at once."""

Logits = Callable[[Tensor], Tensor]


class Check(NamedTuple):
    """Largest difference between two models' logits, and the largest logit, over so many images."""

    difference: float
    largest: float
    images: int

    @property
    def allowed(self) -> float:
        return TOLERANCE * self.largest

    def __str__(self) -> str:
        return (
            f"largest difference of logits {self.difference:.1e} on {self.images} random images, "
            f"logits up to {self.largest:.3g}; allowed {self.allowed:.1e}"
        )


def random_images(count: int, size: int) -> Tensor:
    """(count, 3, size, size): images as a backbone sees them, normalised."""
    return torch.randn(count, 3, size, size, generator=generator(0, "export", count))


@torch.no_grad()
def compare(own: Logits, exported: Logits, size: int) -> Check:
    """Compare two functions from images (n, 3, size, size) to logits (n, classes).

    Raises:
        RuntimeError: they differ by more than the tolerance.
    """
    pairs = [(own(x).float().cpu(), exported(x).float().cpu()) for x in (random_images(n, size) for n in BATCHES)]
    if odd := [(tuple(a.shape), tuple(b.shape)) for a, b in pairs if a.shape != b.shape]:
        raise RuntimeError(f"the export gives logits of the shape {odd[0][1]}, the model of {odd[0][0]}")
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    found = Check(difference, max(float(a.abs().max()) for a, _ in pairs), sum(BATCHES))
    if not found.difference <= found.allowed:  # also where it is not a number
        raise RuntimeError(f"the export does not compute what the model computes, so it was not kept: {found}")
    return found
