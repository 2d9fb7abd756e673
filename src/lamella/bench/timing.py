"""Times that can be compared on a busy machine: all forms take turns, and ratios are taken round by round."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["interleaved", "ratio"]


def interleaved(forms: Mapping[str, Callable[[], object]], repeats: int = 7, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each form, `repeats` times in turn, after `warm` rounds that do not count.

    Work on a GPU is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(warm + repeats):
        for name, run in forms.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Median of the ratios of times taken in the same round.

    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))
