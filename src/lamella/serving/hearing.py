"""What a model writes to the prompts of one request, heard by the event loop while the model's thread writes on."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

from fastapi import HTTPException

from lamella.backbones.generating import Written
from lamella.serving.answers import Prompts
from lamella.serving.batching import Batcher
from lamella.serving.predicting import PredictionQueue

__all__ = ["Heard", "listen"]


class Heard(NamedTuple):
    """What is written to one prompt so far.

    Attributes:
        place: of the prompt in its request.
        written: all of it.
        version: the number of the version that writes.
    """

    place: int
    written: Written
    version: int


async def listen(prompts: Prompts, queue: PredictionQueue, seconds: float) -> AsyncGenerator[Heard]:
    """Let a model answer, and yield what is written to each prompt until all answers are whole.

    What was not asked for in time is skipped, since what comes later holds it. Where nobody listens any more, nothing
    more is written.

    Args:
        prompts: of one request.
        queue: where they wait for their turn.
        seconds: how long that and the writing may take in all.

    Raises:
        HTTPException: 503, too many wait, there is no answer in time, or the model cannot write.
    """
    ear, deadline = _Ear(queue.batcher), asyncio.get_running_loop().time() + seconds
    with queue.admitted(len(prompts)):
        future: Future[Any] = queue.batcher.submit(replace(prompts, hear=ear.hear), 1)
        future.add_done_callback(ear.end)
        try:
            left = len(prompts)
            while left:
                # No `timeout` around all of it: each step may run in another task.
                for heard in await asyncio.wait_for(ear.next(), deadline - asyncio.get_running_loop().time()):
                    left -= bool(heard.written.why)
                    yield heard
        except TimeoutError:
            fault = f"no whole answer within {seconds:g} s; ask for fewer tokens"
            raise HTTPException(503, fault, {"Retry-After": "5"}) from None
        except ValueError as error:  # the fault of the model, since the prompts could be read
            raise HTTPException(503, str(error)) from None
        finally:
            ear.leave()
            future.cancel()


class _Ear:
    """Takes what the thread of the batcher writes to the event loop that it is made in."""

    def __init__(self, batcher: Batcher[Any]) -> None:
        self.batcher = batcher
        self._loop = asyncio.get_running_loop()
        self._signal = asyncio.Event()
        self._lock = threading.Lock()
        self._newest: dict[int, Heard] = {}
        self._error: BaseException | None = None
        self._left = False

    def hear(self, place: int, written: Written) -> bool:
        with self._lock:
            self._newest[place] = Heard(place, written, self.batcher.answering)
        self._wake()
        return not self._left

    def end(self, future: "Future[Any]") -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._error = error
            self._wake()

    def leave(self) -> None:
        self._left = True

    async def next(self) -> list[Heard]:
        await self._signal.wait()
        self._signal.clear()
        if self._error is not None:
            raise self._error
        with self._lock:
            found, self._newest = list(self._newest.values()), {}
        return found

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._signal.set)
        except RuntimeError:  # the loop is closed: the server has ended
            self._left = True
