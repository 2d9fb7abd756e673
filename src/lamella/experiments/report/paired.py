"""Paired differences between methods: what is left of a difference when both saw the same seeds and class orders.

Two runs are a pair where seed and split agree, and with the split the class order and the test images. What a seed or
an order does to both methods alike is no part of the differences within pairs, so these vary less than accuracies do.

Intervals, both at 95 %:

    seeds     mean d +- t(0.975, n - 1) s / sqrt(n), where d are the n differences and s their standard deviation
              (paired t; Student 1908). It answers: would other seeds and orders give the same sign?
    images    percentiles of the mean difference over resampled test images, where the runs kept which were right
              (bootstrap; Efron 1979). It answers: would other images of this kind give the same sign?

A difference is called noise if one of these intervals contains 0. Each pair is judged by itself: of twenty pairs of
methods that are equally good, one is called different on average, or fewer where both intervals are there.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lamella.common.randomness import named_seed
from lamella.experiments.report.summary import Row
from lamella.experiments.results_files import Result

__all__ = ["Interval", "Pair", "bootstrap", "paired_t", "pairs"]

LEVEL = 0.95
RESAMPLES = 10_000
Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """Two methods under one protocol; accuracies are fractions."""

    better: Row
    """The one with the higher mean over the pairs."""
    worse: Row
    metric: str
    differences: tuple[float, ...]
    """Of each pair of runs, better - worse."""
    over_seeds: Interval | None
    """None for a single pair of runs."""
    over_images: Interval | None
    """None where the runs did not keep which images were right, or have different splits."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences))

    @property
    def verdict(self) -> Literal["difference", "noise", "one pair"]:
        """Whether the difference can be told from none; "one pair": a single pair of runs says nothing of seeds."""
        intervals = [interval for interval in (self.over_seeds, self.over_images) if interval is not None]
        if any(low <= 0 <= high for low, high in intervals):
            return "noise"
        return "one pair" if self.over_seeds is None else "difference"


def pairs(board: Sequence[Row], metric: str = "final_accuracy") -> list[Pair]:
    """Compare every two methods of a board that have runs in common, upper bounds aside.

    Args:
        board: the rows that may be compared, best first.
        metric: a metric for which higher is better.
    """
    rows = [row for row in board if not row.at_once]
    found = (_pair(a, b, metric) for a, b in itertools.combinations(rows, 2))
    return [pair for pair in found if pair is not None]


def _pair(a: Row, b: Row, metric: str) -> Pair | None:
    own, other = ({(r.seed, r.split_sha256): r for r in row.results} for row in (a, b))
    matched = [(own[key], other[key]) for key in sorted(own.keys() & other.keys())]
    values = [(x.metrics[metric], y.metrics[metric]) for x, y in matched]
    differences = np.array([x - y for x, y in values if x is not None and y is not None])
    if not len(differences):
        return None
    images = _over_images(matched) if metric == "final_accuracy" else None
    if differences.mean() < 0:
        a, b, differences = b, a, -differences
        images = images and (-images[1], -images[0])
    return Pair(a, b, metric, tuple(differences.tolist()), paired_t(differences), images)


def paired_t(differences: npt.ArrayLike) -> Interval | None:
    """Return the interval of the mean of differences by Student's t.

    Args:
        differences: `(n,)`.

    Returns:
        The interval; None for less than two differences.

    >>> [round(end, 4) for end in paired_t([1.0, 2.0, 3.0])]
    [-0.4841, 4.4841]
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap(differences: npt.ArrayLike) -> Interval:
    """Return the interval of the mean over resampled images.

    Resampling n of n images is a draw of how often each distinct difference occurs, which is what is drawn here.

    Args:
        differences: `(images,)`, for each image the mean difference over the pairs of runs.
    """
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    n = int(counts.sum())
    rng = np.random.default_rng(named_seed(0, "bootstrap", n))
    means = rng.multinomial(n, counts / n, size=RESAMPLES) @ values / n
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _over_images(matched: Sequence[tuple[Result, Result]]) -> Interval | None:
    if len({x.split_sha256 for x, _ in matched}) > 1:
        return None
    kept = [(x.right_images(), y.right_images()) for x, y in matched]
    differences = [x.astype(np.float64) - y for x, y in kept if x is not None and y is not None]
    if len(differences) < len(kept):
        return None
    return bootstrap(np.mean(differences, axis=0))
