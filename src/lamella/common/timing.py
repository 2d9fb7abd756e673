"""Times that can be compared on a busy machine: all forms take turns, and ratios are taken round by round."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["interleaved", "ratio", "ratio_text"]


def interleaved(
    forms: Mapping[str, Callable[[], object]], repeats: int = 7, warm: int = 1, *, processor: bool = False
) -> dict[str, list[float]]:
    """Seconds of each form, `repeats` times in turn, after `warm` rounds that do not count.

    Work on a GPU is waited for.

    Args:
        processor: seconds of the processor instead of those by the clock: other work on the machine disturbs them
            less, and they do not see work on a GPU.
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
    """Median of the ratios of times taken in the same round.

    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    2.0
    """
    return statistics.median(_ratios(ours, other))


def ratio_text(ours: Sequence[float], other: Sequence[float]) -> str:
    """The same with the middle half of the ratios, of two rounds or more.

    >>> ratio_text([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    '2.00 (2.00 to 3.00)'
    """
    low, middle, high = statistics.quantiles(_ratios(ours, other), n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _ratios(ours: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, other, strict=True)]
