"""What the loop is fed with: batches as inputs on its device, and how long it waited for them."""

import time
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.loading import Examples, batches
from lamella.data.sending import send
from lamella.data.transform import Augmentation, InputTransform, View, augmented_view, plain_view

__all__ = ["Feed"]


class Feed:
    """Batches for a loop.

    Args:
        transform: how images become inputs.
        seed: of every draw, together with the names that a pass is given.
        device: where inputs and labels arrive, and where images are resampled.

    Attributes:
        waited: seconds in which the loop had nothing to compute with.
    """

    def __init__(self, transform: InputTransform, *, seed: int, device: torch.device) -> None:
        self.transform, self.seed, self.device = transform, seed, device
        self.waited = 0.0

    def view(self, n: int, augmentation: Augmentation | None, *names: str | int) -> View:
        """How the images of a set of n become inputs in the pass of these names."""
        if augmentation is None:
            return plain_view(self.transform, self.device)
        draws = generator(self.seed, *names, "augment")
        return augmented_view(self.transform, augmentation, n, draws, self.device)

    def __call__(
        self, data: Examples, order: Tensor, sizes: int | Sequence[int], view: View
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Inputs (n, ...) and global class ids (n,) of each batch, in this order."""
        asked = time.monotonic()
        for x, y, _ in batches(data, order, sizes, view):
            here = send(x, self.device), send(y, self.device)
            self.waited += time.monotonic() - asked
            yield here
            asked = time.monotonic()
