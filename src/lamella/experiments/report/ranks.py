"""Ranks of methods over several streams, and how far apart they must be: the critical difference.

Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006, section 3.2.

    N, k        streams, methods
    R_j         the mean over streams of the rank of method j; 1 is the best, methods that are equal share their ranks
    CD          q sqrt(k (k + 1) / (6 N)), q the 95 % point of the studentized range of k over sqrt 2 (Nemenyi 1963)

Methods whose mean ranks differ by less than CD cannot be told apart by these streams. Friedman's test says whether
there is any difference among all of them. Splits and class orders of one stream are not independent streams, so their
means are averaged before ranking.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lamella.experiments.report.summary import Row

__all__ = ["Ranks", "critical_difference", "groups", "ranks"]


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over streams, the best first."""

    methods: tuple[str, ...]
    means: tuple[float, ...]
    streams: int
    critical: float
    """How far apart two mean ranks must be."""
    p: float | None
    """The probability of ranks that differ as much as these if all methods were equal (Friedman); None for two."""


def ranks(boards: Sequence[Sequence[Row]], metric: str = "final_accuracy") -> Ranks | None:
    """Rank the methods that all streams have, by their means over seeds, upper bounds aside.

    Args:
        boards: of each stream, the rows that may be compared.
        metric: a metric for which higher is better.

    Returns:
        The ranks; None for less than two streams, or less than two methods that all of them have.
    """
    from scipy import stats

    streams: dict[tuple[str, str, int], list[dict[str, float]]] = defaultdict(list)
    for board in boards:
        first, kept = board[0].first, [row for row in board if not row.at_once]
        means_of = {row.label: spread.mean for row in kept if (spread := row.metrics[metric])}
        streams[first.scenario, first.kind, first.tasks].append(means_of)
    means = [
        {name: float(np.mean([one[name] for one in splits])) for name in set.intersection(*map(set, splits))}
        for splits in streams.values()
    ]
    common = sorted(set.intersection(*map(set, means))) if means else []
    if len(means) < 2 or len(common) < 2:
        return None
    values = np.array([[stream[name] for name in common] for stream in means])  # (streams, methods)
    mean_ranks = stats.rankdata(-values, axis=1).mean(axis=0)
    order = np.argsort(mean_ranks, kind="stable")
    different = bool((values != values[:, :1]).any())
    p = float(stats.friedmanchisquare(*values.T).pvalue) if len(common) > 2 and different else None
    return Ranks(
        tuple(common[j] for j in order),
        tuple(float(mean_ranks[j]) for j in order),
        len(means),
        critical_difference(len(common), len(means)),
        p,
    )


def critical_difference(methods: int, streams: int) -> float:
    """Return how far apart the mean ranks of two methods must be at the 5 % level (Nemenyi).

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    from scipy import stats

    q = float(stats.studentized_range.ppf(0.95, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * streams))


def groups(means: npt.ArrayLike, critical: float) -> list[tuple[int, int]]:
    """Return the largest groups of methods that cannot be told apart, as first and last position.

    Args:
        means: mean ranks in ascending order.
        critical: the critical difference.

    >>> groups([1.0, 1.5, 2.6, 4.0], 1.2)
    [(0, 1), (1, 2)]
    """
    values = np.asarray(means, dtype=np.float64)
    found: list[tuple[int, int]] = []
    for first, value in enumerate(values):
        last = int(np.searchsorted(values, value + critical, side="left")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
