"""Samples of like length together, so that little is padded."""

from collections.abc import Sequence

__all__ = ["of_like_length"]


def of_like_length(lengths: Sequence[int], *, samples: int, size: int) -> list[list[int]]:
    """Return batches of positions, in the order of the lengths.

    >>> of_like_length([9, 2, 30, 2, 3], samples=3, size=16)
    [[1, 3, 4], [0], [2]]

    Args:
        lengths: of each sample.
        samples: the largest number of samples in a batch, at least 1.
        size: the largest number of samples in a batch times the length of the longest; a longer sample is alone.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # In this order each sample is the longest so far.
        if not batches or len(batches[-1]) == samples or (len(batches[-1]) + 1) * lengths[position] > size:
            batches.append([])
        batches[-1].append(position)
    return batches
