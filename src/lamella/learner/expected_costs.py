"""What learning a task will take, in seconds and bytes: measured on a few of its samples, before it is learned.

A learner that is thrown away afterwards learns a handful of the samples. Of each training call two steps are made, of
which the second is timed, and of each pass one batch; what they took is scaled to all samples and epochs. What happens
between the calls, such as decompositions, is not scaled: it is measured as it is.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple, cast

from torch import Tensor

from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.learner.learning import fitting_task
from lamella.learner.model import Model
from lamella.training.fit import Examples, Fit, Loss
from lamella.training.footprint import bytes_now, kept_for_backward
from lamella.training.recipe import Training

__all__ = ["Expected", "expect_costs"]

CLASSES, PER_CLASS = 4, 4
FIELDS = {field.name for field in fields(Training)}
STEP = 16  # samples of a step on a CPU, where time goes with samples; a GPU gets the batches of the method


class Expected(NamedTuple):
    """The expected costs of learning a task.

    Attributes:
        seconds: the expected duration.
        bytes: the expected peak of memory; 0 if the system does not tell.
    """

    seconds: float
    bytes: int


class _Enough(Exception):
    """Ends a training call that has been measured."""


class _Trial:
    """Wraps a training loop and stops each call as soon as it has been measured.

    Args:
        fit: the loop.
        sample: those samples of the task that are learned here.
        count: how many the task has.
    """

    def __init__(self, fit: Fit, sample: Examples, count: int) -> None:
        self.fit, self.kind, self.sample, self.count = fit, type(sample), len(sample), count
        self.expected = self.spent = 0.0
        self.step_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fit, name)

    def __call__(
        self,
        data: Examples,
        loss: Loss | Sequence[Loss],
        params: Any,
        training: Training | None = None,
        *,
        after_step: Callable[[], None] | None = None,
        **options: Any,
    ) -> list[float]:
        started = time.monotonic()
        settings = {key: options.pop(key) for key in FIELDS & options.keys()}
        recipe = replace(training or Training(), **settings)
        size = min(recipe.batch_size, len(data), recipe.batch_size if self.fit.device.type == "cuda" else STEP)
        ends: list[float] = []
        kept = 0

        losses = [loss] if callable(loss) else loss

        def measured(own: Loss, x: Samples, y: Tensor) -> Tensor:
            nonlocal kept
            with kept_for_backward(self.fit.module.parameters()) as bytes_so_far:
                value = own(x, y)
            kept = max(kept, bytes_so_far())
            return value

        def after() -> None:
            if after_step:
                after_step()
            ends.append(time.monotonic())
            if len(ends) == 2 * len(losses):
                raise _Enough

        short = replace(recipe, epochs=2, batch_size=size, accumulate=1, min_steps=None)
        try:
            self.fit(data, [partial(measured, own) for own in losses], params, short, after_step=after, **options)
        except _Enough:
            pass
        total = self._scaled(len(data), data)
        self.step_bytes = max(self.step_bytes, kept * min(recipe.batch_size, total) // size)
        self.expected += (ends[-1] - ends[-1 - len(losses)]) / size * total * recipe.of_examples(total).epochs
        self.spent += time.monotonic() - started
        return [0.0] * recipe.epochs

    def scan(self, data: Examples, *arguments: Any, **options: Any) -> Tensor:
        with self._measured(data):
            return self.fit.scan(data, *arguments, **options)

    def features(self, data: Examples, *arguments: Any, **options: Any) -> Tensor:
        with self._measured(data):
            return self.fit.features(data, *arguments, **options)

    @contextmanager
    def _measured(self, data: Examples) -> Iterator[None]:
        """Measure a pass over the data and scale its time to all samples."""
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        self.expected += took * self._scaled(len(data), data) / len(data)
        self.spent += took

    def _scaled(self, count: int, data: Examples) -> int:
        """How many samples this call will have: the task's and what comes with them, such as a memory."""
        of_task = isinstance(data, self.kind) or count == self.sample
        return count - self.sample + self.count if of_task and count >= self.sample else count


def expect_costs(model: Model, task: Task, held_back: int) -> Expected:
    """Estimate the costs of learning a task. The model must not be used afterwards.

    Args:
        held_back: how many samples will be looked at when the task is learned.
    """
    task, _, _ = fitting_task(model, task)
    short = _short(task)
    plain = model.fit()
    plain.compile = False  # compiling takes longer than what is measured
    fit = _Trial(plain, short.train, len(task.train))
    fit.begin(str(len(model.tasks)))
    for _ in range(2):  # the first pass warms up, the second one is the measurement
        before = fit.expected
        fit.scan(short.train, lambda x, _: model.backbone(x))
    of_held_back = (fit.expected - before) / len(task.train) * held_back
    fit.expected = fit.spent = 0.0
    now, started = bytes_now(fit.device), time.monotonic()
    model.method.eval().learn(short, cast(Fit, fit))
    between = time.monotonic() - started - fit.spent
    return Expected(fit.expected + between + of_held_back, now + fit.step_bytes if now else 0)


def _short(task: Task) -> Task:
    """A few samples of a few of the task's classes; of answers a few of all lengths."""
    if not task.classes:
        train = task.train
        by_length = sorted(range(len(train)), key=lambda i: len(train.identity(i)))
        places = [(2 * i + 1) * len(train) // (2 * PER_CLASS) for i in range(PER_CLASS)]
        return replace(task, train=train.subset(list(dict.fromkeys(by_length[place] for place in places))))
    classes = task.classes[:CLASSES]
    chosen = [i for c in classes for i in (task.train.labels == c).nonzero()[:PER_CLASS, 0].tolist()]
    return replace(task, classes=classes, class_names=task.class_names[:CLASSES], train=task.train.subset(chosen))
