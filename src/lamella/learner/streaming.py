"""Learning a task as it comes in: batch by batch, each of them once."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from lamella.data.scenario import Task
from lamella.learner.model import Model
from lamella.methods import METHODS, WHOLE_STREAM, Method
from lamella.training.fit import Fit

__all__ = ["Stream", "check_online", "learn_stream"]


def check_online(model: Model) -> None:
    """Make sure that the method of a model can learn a stream.

    Raises:
        ValueError: it cannot; the message has its own reason.
    """
    if why := model.method.not_online:
        classes = {n: b for n, b in METHODS.items() if isinstance(b, type) and issubclass(b, Method)}
        able = sorted(name for name, build in classes.items() if not build.not_online and name not in WHOLE_STREAM)
        raise ValueError(
            f"method '{model.name}' cannot learn an online stream: {why}. Methods that can: {', '.join(able)}"
        )


def _nothing(_: object) -> None:
    """What is done by default beside learning."""


@dataclass(frozen=True)
class Stream:
    """How a task comes in, and what is measured meanwhile.

    Attributes:
        batch: how many samples come in together, at least 1.
        before: called with each batch before it is learned, as a task of its own. It may predict, and nothing else.
        after: called after each batch with the number of samples of the task that were learned by then; likewise.
    """

    batch: int
    before: Callable[[Task], None] = _nothing
    after: Callable[[int], None] = _nothing


def learn_stream(model: Model, task: Task, fit: Fit, stream: Stream) -> float:
    """Let the method learn a task batch by batch, in the order of its samples. What it trains sees each of them once.

    Every batch is a task to the method, with the classes that are in it. It is not told where tasks of the stream
    begin.

    Args:
        model: the model.
        task: the task.
        fit: the loop, in which the task has begun.
        stream: how it comes in.

    Returns:
        The seconds that `before` and `after` took.
    """
    fit.once = True
    names = dict(zip(task.classes, task.class_names, strict=True))
    number = sum(math.ceil(record.images / stream.batch) for record in model.tasks)
    spent = 0.0
    for start in range(0, len(task.train), stream.batch):
        end = min(start + stream.batch, len(task.train))
        part = task.train.subset(range(start, end))
        classes = tuple(dict.fromkeys(part.labels.tolist()))
        piece = Task(number, f"{task.name}, batch {number}", classes, tuple(names[c] for c in classes), part)
        spent += _seconds(lambda piece=piece: stream.before(piece))
        model.method.learn(piece, fit)
        spent += _seconds(lambda end=end: stream.after(end))
        number += 1
    return spent


def _seconds(do: Callable[[], None]) -> float:
    started = time.monotonic()
    do()
    return time.monotonic() - started
