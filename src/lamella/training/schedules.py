"""Learning-rate schedules: (epoch, epochs) -> factor of the learning rate, 0..1."""

import math
from collections.abc import Callable, Sequence

from lamella.common.checks import check_one_of

__all__ = ["SCHEDULES", "cosine", "milestone_schedule", "named_schedule"]


def constant(epoch: int, epochs: int) -> float:
    return 1.0


def as_meant(epoch: int, epochs: int) -> float:
    """InfLoRA's cosine, cos(99 pi e / (200 (E - 1))): from 1 to about 0.016 at the last epoch."""
    return math.cos(99 * math.pi * epoch / (200 * (epochs - 1))) if epochs > 1 else 1.0


def as_run(epoch: int, epochs: int) -> float:
    """The same as the authors' code runs it: its first two epochs share the first value, the last is never reached.

    >>> [round(as_run(e, 5), 3) for e in range(5)]
    [1.0, 1.0, 0.925, 0.713, 0.394]
    """
    return as_meant(max(epoch - 1, 0), epochs)


def cosine(epoch: int, epochs: int) -> float:
    """Half a cosine, from 1 at the first epoch towards 0 after the last (Loshchilov & Hutter, ICLR 2017)."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": constant, "as_meant": as_meant, "as_run": as_run}


def named_schedule(name: str) -> Callable[[int, int], float]:
    """Raises ValueError for a name that is not in SCHEDULES."""
    check_one_of("schedule", name, SCHEDULES)
    return SCHEDULES[name]


def milestone_schedule(milestones: Sequence[float]) -> Callable[[int, int], float]:
    """The rate falls to a tenth at each milestone, a share of the epochs; none leaves it constant.

    >>> schedule = milestone_schedule((0.5, 0.75))
    >>> [round(schedule(e, 8), 3) for e in range(8)]
    [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]

    Raises:
        ValueError: a milestone is not within (0, 1].
    """
    if strange := [m for m in milestones if not 0 < m <= 1]:
        raise ValueError(f"milestone {strange[0]} is outside (0, 1]; it is a share of the epochs, such as 0.5")
    return lambda epoch, epochs: 0.1 ** sum(epoch >= share * epochs for share in milestones)
