"""How many input directions of each layer are protected, how much the tasks overlap, and how many tasks still fit.

used        the number of protected directions: the dimension of the subspace of a layer's d inputs that old tasks need
overlap     of two tasks on a layer, 0..1: the sum of squared cosines between the spans of their A's, divided by the
            smaller rank. It is 1 if one span contains the other, and 0 if they are orthogonal. Averaged over layers.
chance      the expected overlap of random spans: the larger rank divided by d
forecast    the number of further tasks until a layer has fewer free directions than the rank of a branch. It assumes
            that each of them takes as many directions as the last tasks did on average.
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
"""The forecast uses the mean of this many last tasks, without the very first, which takes more than others."""


@dataclass(frozen=True)
class Space:
    """The protected and free input directions of a layer.

    Attributes:
        layer: the name of the layer.
        width: the number d of its inputs.
        used: the number of protected directions, 0..d.
        grown: how many directions each task added, in the order of learning; empty if this was not recorded.
    """

    layer: str
    width: int
    used: int
    grown: tuple[int, ...] = ()

    @property
    def free(self) -> int:
        """The number of directions that are not protected, 0..d."""
        return self.width - self.used

    @property
    def pace(self) -> float:
        """The mean number of directions that each of the `latest` tasks took; 0 if nothing was recorded.

        It is negative where fewer are protected than before, as a method may that chooses them anew after each task.
        """
        return 0.0 if not self.latest else sum(self.latest) / len(self.latest)

    @property
    def latest(self) -> tuple[int, ...]:
        """What the last tasks took, at most `LATEST` of them. The first task counts only if it is the only one."""
        return self.grown[1:][-LATEST:] or self.grown


@dataclass(frozen=True)
class Forecast:
    """How many further tasks still fit.

    Attributes:
        tasks: the number of further tasks; None if the last tasks took no direction of any layer, or gave some back.
        layer: the name of the layer that runs out of free directions first.
        rank: the number of free directions that a branch needs.
        pace: how many directions of that layer a task takes on average.
        last: the number of tasks over which the pace was measured.
    """

    tasks: int | None
    layer: str
    rank: int
    pace: float
    last: int


@dataclass(frozen=True)
class Overlap:
    """How much the branches of tasks read the same input directions.

    Attributes:
        tasks: the numbers of the tasks that have their own branches.
        values: the overlap of each pair, (tasks, tasks), 0..1.
        chance: the expected overlap of random spans of these ranks, 0..1.
    """

    tasks: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    chance: float


def used_directions(method: Method) -> dict[str, int]:
    """Return the number of protected directions by layer; empty for methods that protect none."""
    return {layer: space.dimension for layer, space in method.protected().items()}


def spaces(method: Method, after_task: Sequence[Mapping[str, int]]) -> tuple[Space, ...]:
    """Return the protected and free directions of each layer.

    Args:
        method: the method that learned the tasks.
        after_task: the result of `used_directions` after each task; it is empty for a task that an older version of
            Lamella learned.
    """
    counts = [dict.fromkeys(method.protected(), 0), *after_task]
    known = all(counts)
    return tuple(
        Space(
            layer,
            space.width,
            space.dimension,
            tuple(b[layer] - a[layer] for a, b in pairwise(counts)) if known else (),
        )
        for layer, space in method.protected().items()
    )


def forecast(method: Method, known: Sequence[Space]) -> Forecast | None:
    """Estimate how many further tasks fit until a branch has to be narrower than its rank.

    Args:
        method: the method that learned the tasks.
        known: the directions of its layers, from `spaces`.

    Returns:
        The forecast; None if the method protects no directions, or if the growth was not recorded.
    """
    rank = method.free_rank
    if not known or not all(space.grown for space in known) or rank is None:
        return None
    space = min(known, key=lambda space: _tasks_left(space, rank))
    left = _tasks_left(space, rank)
    return Forecast(None if left == math.inf else int(left), space.layer, rank, space.pace, len(space.latest))


def _tasks_left(space: Space, rank: int) -> float:
    """Return the number of further tasks that start with at least `rank` free directions."""
    if space.free < rank:
        return 0
    # Integer arithmetic, because the floating-point quotient of two thirds may fall just below a whole number.
    return math.inf if space.pace <= 0 else (space.free - rank) * len(space.latest) // sum(space.latest) + 1


def overlap(method: Method, learned: int) -> Overlap | None:
    """Measure how much the branches of tasks overlap; None if fewer than two tasks have their own branches.

    Args:
        method: the method that learned the tasks.
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
    """Return |U_i^T U_j|^2 / min(k_i, k_j), (tasks, tasks), for an orthonormal U (d, k) of each task."""
    ranks = torch.tensor([U.shape[1] for U in spans])
    owner = torch.repeat_interleave(torch.eye(len(spans), dtype=torch.float64), ranks, dim=0)
    U = torch.cat(list(spans), dim=1)
    return owner.T @ (U.T @ U).square() @ owner / torch.minimum(ranks[:, None], ranks)


def _spans(method: Method, learned: int) -> dict[str, dict[int, Tensor]]:
    """Return by layer and task an orthonormal basis (d, k) of the rows of the task's A's, without empty ones."""
    spans: dict[str, dict[int, Tensor]] = {}
    for task in range(learned):
        for layer, rows in method.rows_read(task).items():
            U = _row_span(rows)
            if U.shape[1]:
                spans.setdefault(layer, {})[task] = U
    return spans


def _row_span(A: Tensor) -> Tensor:
    """Return an orthonormal basis (d, k) of the rows of A (r, d), in float64."""
    _, s, V = torch.linalg.svd(A.double().cpu(), full_matrices=False)
    return V[: numerical_rank(s, float(s[0]))].T if len(s) else A.new_zeros(A.shape[1], 0).double().cpu()
