"""Whoever wants to know of every finished epoch says so here, and the training loop tells them.

It is told in the thread that trains, while `listening` runs, and may neither change anything nor draw random numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["EpochEnded", "listening", "tell"]

EpochEnded = Callable[[str, str, int, float], None]
"""Takes the name of the task, the name of the call within the task, the number of epochs that the call has finished
(from 1), and the mean loss of the last one."""

_listener: ContextVar[EpochEnded | None] = ContextVar("lamella_epoch_listener", default=None)


@contextmanager
def listening(heard: EpochEnded) -> Iterator[None]:
    """Call `heard` after each epoch that is trained while this runs."""
    before = _listener.set(heard)
    try:
        yield
    finally:
        _listener.reset(before)


def tell(task: str, call: str, epoch: int, loss: float) -> None:
    """Tell the listener, if there is one, of a finished epoch."""
    if (heard := _listener.get()) is not None:
        heard(task, call, epoch, loss)
