"""What the loop is fed with: batches as inputs on its device, and how long it waited for them."""

import time
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.lengths import lengths_of, longest_first
from lamella.data.loading import Examples, batches
from lamella.data.samples import Samples, Transform, View
from lamella.data.sending import send
from lamella.data.transform import Augmentation

__all__ = ["Feed"]


class Feed:
    """Batches for a loop.

    Args:
        transform: how raw samples become inputs.
        seed: of every draw, together with the names that a pass is given.
        device: where inputs and labels arrive, and where inputs are made.

    Attributes:
        waited: seconds in which the loop had nothing to compute with.
    """

    def __init__(self, transform: Transform, *, seed: int, device: torch.device) -> None:
        self.transform, self.seed, self.device = transform, seed, device
        self.waited = 0.0
        self._measured: dict[int, tuple[Examples, Tensor | None]] = {}

    def view(self, n: int, augmentation: Augmentation | None, *names: str | int) -> View:
        """How the samples of a set of n become inputs in the pass of these names."""
        if augmentation is None:
            return self.transform.view(self.device)
        return self.transform.view(self.device, augmentation, n, generator(self.seed, *names, "augment"))

    def lengths(self, data: Examples) -> Tensor | None:
        """(n,) the length of each sample; None where all have one. A set is measured once."""
        if id(data) not in self._measured:
            self._measured[id(data)] = data, lengths_of(data, self.transform)
        return self._measured[id(data)][1]

    def any_order(self, data: Examples, size: int) -> Tensor:
        """(n,) an order for batches of this size of samples of like lengths; that of the set where all have one."""
        lengths = self.lengths(data) if len(data) > size else None
        return torch.arange(len(data)) if lengths is None else longest_first(lengths)

    def __call__(
        self, data: Examples, order: Tensor, sizes: int | Sequence[int], view: View
    ) -> Generator[tuple[Samples, Tensor], None, None]:
        """Inputs of n samples and global class ids (n,) of each batch, in this order."""
        asked = time.monotonic()
        for x, y, _ in batches(data, order, sizes, view):
            here = send(x, self.device), send(y, self.device)
            self.waited += time.monotonic() - asked
            yield here
            asked = time.monotonic()
