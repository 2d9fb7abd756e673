"""Which directions of its inputs a layer still has free, how alike the tasks read them, and how long they last.

used        dimension of what old tasks protect of a layer's d inputs: a Subspace's, or a Signature's
overlap     of two tasks on a layer, 0..1: the sum of squared cosines between the spans of their A's, over the
            smaller rank; 1 where one span holds the other, 0 where they are orthogonal. The mean over layers.
chance      what spans drawn at random would overlap: the larger rank over d
forecast    the tasks until a layer has fewer free directions than a branch's rank: a straight line through what
            the last tasks took
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lamella.memory.subspace import numerical_rank
from lamella.methods import Method

__all__ = ["Forecast", "Overlap", "Space", "forecast", "overlap", "spaces", "used_directions"]

LATEST = 3
"""Tasks whose mean the forecast goes on with: the first one of all takes more than others."""


@dataclass(frozen=True)
class Space:
    """What old tasks left of a layer's inputs.

    Attributes:
        layer: its name. width: d. used: protected directions, 0..d.
        grown: how many each task added, in the order of learning; empty where that was not recorded.
    """

    layer: str
    width: int
    used: int
    grown: tuple[int, ...] = ()

    @property
    def free(self) -> int:
        return self.width - self.used

    @property
    def pace(self) -> float:
        """Directions a task: of the last ones, but not of the first unless it is alone; of all where none is known."""
        return 0.0 if not self.latest else sum(self.latest) / len(self.latest)

    @property
    def latest(self) -> tuple[int, ...]:
        return self.grown[1:][-LATEST:] or self.grown


@dataclass(frozen=True)
class Forecast:
    """How many tasks still fit.

    Attributes:
        tasks: so many; None where the last tasks took no direction anywhere. layer: which runs out first.
        rank: the free directions that a task wants. pace: those that a task takes of that layer.
        last: over how many tasks the pace was measured.
    """

    tasks: int | None
    layer: str
    rank: int
    pace: float
    last: int


@dataclass(frozen=True)
class Overlap:
    """How alike tasks read their inputs.

    Attributes:
        tasks: numbers of those that have branches of their own. values: (tasks, tasks), 0..1.
        chance: what random spans of these ranks would overlap.
    """

    tasks: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    chance: float


def used_directions(method: Method) -> dict[str, int]:
    """By layer, how many directions old tasks protect; empty for methods that protect none."""
    return {layer: space.dimension for layer, space in method.protected().items()}


def spaces(method: Method, after_task: Sequence[Mapping[str, int]]) -> tuple[Space, ...]:
    """What is used of each layer.

    Args:
        after_task: `used_directions` after each task; empty where an older version learned one of them.
    """
    counts = [dict.fromkeys(method.protected(), 0), *after_task]
    known = all(counts)
    return tuple(
        Space(
            layer, space.width, space.dimension,
            tuple(b[layer] - a[layer] for a, b in pairwise(counts)) if known else (),
        )
        for layer, space in method.protected().items()
    )  # fmt: skip


def forecast(method: Method, known: Sequence[Space]) -> Forecast | None:
    """How many tasks fit until a branch is narrower than its rank; None where nothing is protected, or grew unseen."""
    rank = method.free_rank
    if not known or not all(space.grown for space in known) or rank is None:
        return None
    space = min(known, key=lambda space: _tasks_left(space, rank))
    left = _tasks_left(space, rank)
    return Forecast(None if left == math.inf else int(left), space.layer, rank, space.pace, len(space.latest))


def _tasks_left(space: Space, rank: int) -> float:
    """Tasks that begin with at least `rank` free directions."""
    if space.free < rank:
        return 0
    # Whole numbers, because a quotient of thirds may round to the other side of one.
    return math.inf if space.pace == 0 else (space.free - rank) * len(space.latest) // sum(space.latest) + 1


def overlap(method: Method, learned: int) -> Overlap | None:
    """How alike the tasks' own branches read; None where fewer than two tasks have branches of their own.

    Args:
        method: what learned the tasks.
        learned: how many tasks it has learned.
    """
    layers = [spans for spans in _spans(method, learned).values() if len(spans) > 1]
    tasks = sorted({task for spans in layers for task in spans})
    if len(tasks) < 2:
        return None
    total, counted = torch.zeros(2, len(tasks), len(tasks), dtype=torch.float64)
    chances: list[float] = []
    for spans in layers:
        here = torch.tensor([tasks.index(task) for task in spans])
        total[here[:, None], here] += _overlaps(list(spans.values()))
        counted[here[:, None], here] += 1
        chances.append(max(U.shape[1] for U in spans.values()) / next(iter(spans.values())).shape[0])
    values = tuple(tuple(row) for row in (total / counted.clamp_min(1)).tolist())
    return Overlap(tuple(tasks), values, sum(chances) / len(chances))


def _overlaps(spans: Sequence[Tensor]) -> Tensor:
    """(tasks, tasks) |U_i^T U_j|^2 / min(k_i, k_j) of orthonormal U (d, k)."""
    ranks = torch.tensor([U.shape[1] for U in spans])
    owner = torch.repeat_interleave(torch.eye(len(spans), dtype=torch.float64), ranks, dim=0)
    U = torch.cat(list(spans), dim=1)
    return owner.T @ (U.T @ U).square() @ owner / torch.minimum(ranks[:, None], ranks)


def _spans(method: Method, learned: int) -> dict[str, dict[int, Tensor]]:
    """By layer and task, an orthonormal basis (d, k) of what the task's A's read; tasks that read nothing left out."""
    spans: dict[str, dict[int, Tensor]] = {}
    for task in range(learned):
        for layer, rows in method.rows_read(task).items():
            U = _row_span(rows)
            if U.shape[1]:
                spans.setdefault(layer, {})[task] = U
    return spans


def _row_span(A: Tensor) -> Tensor:
    """(d, k) float64 orthonormal basis of the rows of A (r, d)."""
    _, s, V = torch.linalg.svd(A.double().cpu(), full_matrices=False)
    return V[: numerical_rank(s, float(s[0]))].T if len(s) else A.new_zeros(A.shape[1], 0).double().cpu()
