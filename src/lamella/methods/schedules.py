"""Learning-rate schedules: (epoch, epochs) -> factor of the learning rate, 0..1."""

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "named_schedule"]


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


SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": constant, "as_meant": as_meant, "as_run": as_run}


def named_schedule(name: str) -> Callable[[int, int], float]:
    """Raises ValueError for a name that is not in SCHEDULES."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule '{name}' is unknown; use one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]
