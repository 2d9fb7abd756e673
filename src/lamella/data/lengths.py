"""Samples of like lengths together, so that little of a batch is padding."""

from collections.abc import Sequence
from itertools import pairwise
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


def of_like_length(lengths: Sequence[int], *, samples: int, size: int, pass_costs: int) -> list[list[int]]:
    """The positions of samples in the batches of like lengths that cost least, the shortest first.

    A batch costs its samples times the length of its longest, and what a pass costs in itself.

    >>> of_like_length([9, 2, 30, 2, 3], samples=3, size=60, pass_costs=8)
    [[1, 3, 4], [0], [2]]

    Args:
        lengths: of each sample.
        samples: the largest number of samples in a batch, at least 1.
        size: the largest number of samples of a batch times the length of its longest; a longer sample is alone.
        pass_costs: what a pass costs, whatever it computes, as a number of tokens; at least 0.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    least, begins = [0], [0]  # of the first k samples in this order: what they cost, and where their last batch begins
    for stop in range(1, len(order) + 1):
        longest = lengths[order[stop - 1]]
        most = max(1, min(samples, stop, size // max(longest, 1)))
        costs = {
            start: least[start] + (stop - start) * longest + pass_costs
            for start in range(stop - 1, stop - most - 1, -1)
        }
        begins.append(min(costs, key=lambda start: costs[start]))
        least.append(costs[begins[-1]])
    ends = [len(order)]
    while ends[-1]:
        ends.append(begins[ends[-1]])
    return [order[start:stop] for start, stop in pairwise(reversed(ends))]


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
