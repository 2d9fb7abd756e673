"""Comparable times on a busy machine: all variants are measured in turn, and ratios are computed within each round."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["interleaved", "ratio", "ratio_text"]


def interleaved(
    forms: Mapping[str, Callable[[], object]], repeats: int = 7, warm: int = 1, *, processor: bool = False
) -> dict[str, list[float]]:
    """Measure the seconds of several variants in turn. Each measurement waits for work on a GPU to finish.

    Args:
        forms: the variants by name.
        repeats: how many rounds are measured, at least 1.
        warm: how many rounds before them are not measured.
        processor: whether to measure processor time instead of wall-clock time. Other work on the machine disturbs it
            less, but it does not include work on a GPU.

    Returns:
        The seconds of each round by variant.
    """
    clock = time.process_time if processor else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(warm + repeats):
        for name, run in forms.items():
            started = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm:
                seconds[name].append(clock() - started)
    return seconds


def ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Return the median of the ratios of times in the same round.

    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    2.0
    """
    return statistics.median(_ratios(ours, other))


def ratio_text(ours: Sequence[float], other: Sequence[float]) -> str:
    """Format the median and the quartiles of the ratios, from two or more rounds.

    >>> ratio_text([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    '2.00 (2.00 to 3.00)'
    """
    low, middle, high = statistics.quantiles(_ratios(ours, other), n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _ratios(ours: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, other, strict=True)]
