"""From the samples of a request to predictions: they are read and prepared, then the batcher's thread predicts."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException, Request

from lamella.common.words import many
from lamella.serving.batching import Answer, Batcher
from lamella.serving.kind import Kind, Named
from lamella.serving.limits import Limits

__all__ = ["PredictionQueue"]


class PredictionQueue:
    """Queues the samples of requests and returns their predictions.

    Args:
        batcher: the batcher that predicts.
        kind: of the samples.
        limits: the bounds on time.

    Attributes:
        waiting: how many samples wait for their prediction.
    """

    def __init__(self, batcher: Batcher[Any], kind: Kind[Any], limits: Limits) -> None:
        self.batcher = batcher
        self.kind = kind
        self.limits = limits
        self.waiting = 0

    async def predict(self, request: Request, top: int) -> tuple[list[str], Answer]:
        """Predict the classes of the samples of a request. One version of the model answers for all of them.

        Args:
            request: the request.
            top: how many classes to name for each sample.

        Returns:
            The name of each sample, and the answer.

        Raises:
            HTTPException: 400, 413, 415 or 422, the request or a sample is refused; 503, too many samples wait, the
                model does not answer in time, it has learned nothing, or it cannot predict.
        """
        async with self.kind.read(request) as samples:
            if not self.batcher.loaded.learner.tasks:
                raise HTTPException(503, "this model has learned nothing yet; send a task to /learn first")
            noun, most, n = self.kind.noun, self.kind.most, len(samples)
            if n > most:
                raise HTTPException(413, f"{n} {noun}s were sent at once; {most} are allowed, send the rest later")
            with self.admitted(n):
                try:
                    answer = await asyncio.wait_for(self._predict(samples, top), self.limits.predict_seconds)
                except TimeoutError:
                    fault = f"no answer within {self.limits.predict_seconds:g} s; try again with fewer {noun}s"
                    raise HTTPException(503, fault, {"Retry-After": "5"}) from None
            return [sample.name for sample in samples], answer

    @contextmanager
    def admitted(self, n: int) -> Iterator[None]:
        """Count samples among those that wait, within this context.

        Args:
            n: how many.

        Raises:
            HTTPException: 503, too many wait.
        """
        if self.waiting + n > self.kind.waiting:
            fault = f"{many(self.waiting, self.kind.noun)} wait already; try again soon"
            raise HTTPException(503, fault, {"Retry-After": "1"})
        self.waiting += n
        try:
            yield
        finally:
            self.waiting -= n

    async def _predict(self, samples: Sequence[Named], top: int) -> Answer:
        prepared = await self.kind.prepare(samples, self.batcher.loaded.learner)
        try:
            return await asyncio.wrap_future(self.batcher.submit(prepared, top))
        except ValueError as error:  # the fault of the model, since each sample could be read
            raise HTTPException(503, str(error)) from None
