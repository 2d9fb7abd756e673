"""Samples of like lengths together, so that little of a batch is padding."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lamella.data.loading import Examples
from lamella.data.samples import Transform

__all__ = ["OfManyLengths", "in_order", "in_windows", "lengths_of", "longest_first", "of_like_length"]

CHUNK = 1024
"""Samples that are measured at once."""
WINDOW = 32
"""Batches of training among which samples are sorted."""


@runtime_checkable
class OfManyLengths(Protocol):
    """A `Transform` whose samples have lengths of their own, and are padded to the longest of their batch."""

    def lengths(self, raw: Any) -> Tensor:
        """(n,) int64, the length of each raw sample as a backbone takes it, without padding."""
        ...


def lengths_of(data: Examples, transform: Transform) -> Tensor | None:
    """The length of each sample of a set.

    Args:
        data: the set.
        transform: how its raw samples become inputs.

    Returns:
        (n,) int64; None where all samples have one length, or are inputs already.
    """
    if not isinstance(transform, OfManyLengths):
        return None
    found: list[Tensor] = []

    def measure(raw: Any, index: Tensor) -> Tensor:
        found.append(transform.lengths(raw))
        return found[-1]

    for number, part in enumerate(torch.arange(len(data)).split(CHUNK)):
        data.batch(part, measure)
        if len(found) == number:  # the set does not ask a view, since it holds inputs
            return None
    return torch.cat(found)


def longest_first(lengths: Tensor) -> Tensor:
    """An order in which samples of like lengths come together.

    The longest come first: what does not fit into memory shows at once.

    Args:
        lengths: (n,) of samples.

    Returns:
        (n,) positions of the samples.
    """
    return torch.argsort(lengths, descending=True, stable=True)


def of_like_length(lengths: Sequence[int], *, samples: int, size: int, padding: int) -> list[list[int]]:
    """The positions of samples in batches of like lengths, the shortest first.

    >>> of_like_length([9, 2, 30, 2, 3], samples=3, size=60, padding=8)
    [[1, 3, 4], [0], [2]]

    Args:
        lengths: of each sample.
        samples: the largest number of samples in a batch, at least 1.
        size: the largest number of samples of a batch times the length of its longest; a longer sample is alone.
        padding: the largest part of that size which is padding. As much as a pass of a batch costs in itself: more is
            dearer than another batch, and less makes more batches than it saves.
    """
    batches: list[list[int]] = []
    real = 0  # the length of all samples of the newest batch
    for position in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # In this order each sample is the longest so far.
        number, longest = (len(batches[-1]) + 1 if batches else 0), lengths[position]
        if not 0 < number <= samples or number * longest > size or number * longest - real - longest > padding:
            batches.append([])
            real = 0
        batches[-1].append(position)
        real += longest
    return batches


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """Values (n, ...) of samples that were read in an order (n,), in the order of their set."""
    if torch.equal(order, torch.arange(len(order))):
        return values
    return values[order.argsort().to(values.device)]


def in_windows(order: Tensor, sizes: list[int], lengths: Tensor, generator: torch.Generator) -> Tensor:
    """A drawn order in which samples of like lengths share a batch, but come at any time of an epoch.

    The order is cut into windows of some batches. Within a window samples are sorted by their lengths, and the batches
    come in a drawn order.

    Args:
        order: (n,) positions of the samples, drawn.
        sizes: how many samples each batch has, n in all.
        lengths: (n,) of all samples of the set.
        generator: draws the order of the batches.
    """
    parts: list[Tensor] = []
    for start in range(0, len(sizes), WINDOW):
        own = sizes[start : start + WINDOW]
        places = torch.randperm(len(own), generator=generator).tolist()  # where each batch of the sorted ones goes
        window = order[sum(sizes[:start]) : sum(sizes[:start]) + sum(own)]
        by_length = window[torch.argsort(lengths[window], stable=True)].split([own[place] for place in places])
        batches = dict(zip(places, by_length, strict=True))
        parts += [batches[place] for place in range(len(own))]
    return torch.cat(parts)
