"""Learning-rate schedules: (epoch from 0, number of epochs) -> factor of the learning rate, 0..1."""

import math
from collections.abc import Callable, Sequence

__all__ = ["FORMER_NAMES", "SCHEDULES", "check_milestones", "milestone_schedule"]


def constant(epoch: int, epochs: int) -> float:
    return 1.0


def cosine(epoch: int, epochs: int) -> float:
    """Half a cosine, from 1 at the first epoch towards 0 after the last (Loshchilov & Hutter, ICLR 2017)."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def inflora(epoch: int, epochs: int) -> float:
    """InfLoRA's cosine, cos(99 pi e / (200 (E - 1))): from 1 to about 0.016 at the last epoch."""
    return math.cos(99 * math.pi * epoch / (200 * (epochs - 1))) if epochs > 1 else 1.0


def inflora_code(epoch: int, epochs: int) -> float:
    """InfLoRA's cosine as the authors' code runs it, one epoch late: the last value is never reached.

    >>> [round(inflora_code(e, 5), 3) for e in range(5)]
    [1.0, 1.0, 0.925, 0.713, 0.394]
    """
    return inflora(max(epoch - 1, 0), epochs)


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "cosine": cosine,
    "inflora": inflora,
    "inflora-code": inflora_code,
}
"""The schedules without further numbers; for "milestones", which has some, see `milestone_schedule`."""

FORMER_NAMES = {"as_meant": "inflora", "as_run": "inflora-code"}
"""The names of schedules in configurations of version 0.1, and their names now."""


def check_milestones(milestones: Sequence[float]) -> None:
    """Check that milestones are shares of the epochs.

    Raises:
        ValueError: a milestone is not within (0, 1].
    """
    if strange := [m for m in milestones if not 0 < m <= 1]:
        raise ValueError(f"milestone {strange[0]} is outside (0, 1]; it is a share of the epochs, such as 0.5")


def milestone_schedule(milestones: Sequence[float]) -> Callable[[int, int], float]:
    """Return a schedule that divides the learning rate by ten at each milestone.

    Args:
        milestones: shares of the epochs, within (0, 1]; without any the learning rate is constant.

    >>> schedule = milestone_schedule((0.5, 0.75))
    >>> [round(schedule(e, 8), 3) for e in range(8)]
    [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]

    Raises:
        ValueError: a milestone is not within (0, 1].
    """
    check_milestones(milestones)
    return lambda epoch, epochs: 0.1 ** sum(epoch >= share * epochs for share in milestones)
