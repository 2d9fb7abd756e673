"""One thread that owns the model, and answers what has come in together."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.data.images import TensorSet
from lamella.learner.learner import Learner, Prediction

__all__ = ["Answer", "Batcher", "Loaded"]


class Loaded(NamedTuple):
    """A learner that nobody else uses, and the version of the model that it is, with what its folder says of that."""

    learner: Learner
    version: int
    manifest: Mapping[str, Any] = MappingProxyType({})


class Answer(NamedTuple):
    """Predictions for one request, in its order, and the version of the model that made them."""

    predictions: list[Prediction]
    version: int


class _Request(NamedTuple):
    x: Tensor
    top: int
    answer: "Future[Answer]"


class Batcher:
    """Predicts for many clients at once.

    Branches are switched in place (`using`, `watch`), so a model may be used by one thread only: this one. A new model
    put into `loaded` takes over with the next batch; the batch under way is still the old one's.

    Args:
        loaded: the model to start with.
        batch_images: a batch is not waited for beyond so many images; one request is never divided.
        wait_seconds: how long the first request of a batch waits for others.
        observe: called with the number of images of each batch.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        batch_images: int = 32,
        wait_seconds: float = 0.004,
        observe: Callable[[int], None] = lambda images: None,
    ) -> None:
        self.loaded = loaded
        self.batch_images, self.wait_seconds, self.observe = batch_images, wait_seconds, observe
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lamella-model", daemon=True)
        self._thread.start()

    def submit(self, x: Tensor, top: int) -> "Future[Answer]":
        """What images look like, later.

        Args:
            x: (n, 3, size, size), as the backbone wants them; n at least 1.
            top: how many classes to name for each.
        """
        answer: Future[Answer] = Future()
        self._requests.put(_Request(x, top, answer))
        return answer

    def close(self) -> None:
        """Answer what was asked before, then end."""
        self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            batch, open_ = self._next_batch()
            waiting = [request for request in batch if request.answer.set_running_or_notify_cancel()]
            if waiting:
                self._answer(waiting, self.loaded)

    def _next_batch(self) -> tuple[list[_Request], bool]:
        """Requests to answer together, and whether more may come."""
        batch: list[_Request] = []
        images, deadline = 0, 0.0
        while images < self.batch_images:
            try:
                # What has arrived is taken also after the deadline: it waited while the last batch was computed.
                left = max(0.0, deadline - time.monotonic()) if batch else None
                request = self._requests.get(timeout=left) if left is None or left else self._requests.get_nowait()
            except queue.Empty:
                break
            if request is None:
                return batch, False
            deadline = deadline or time.monotonic() + self.wait_seconds
            batch.append(request)
            images += len(request.x)
        return batch, True

    def _answer(self, batch: Sequence[_Request], loaded: Loaded) -> None:
        try:
            x = torch.cat([request.x for request in batch])
            images = TensorSet.unlabelled(x, noun="image")
            predictions = iter(loaded.learner.predict(images, top=max(request.top for request in batch)))
            self.observe(len(x))
            answers = [[_first(next(predictions), r.top) for _ in range(len(r.x))] for r in batch]
        except Exception as error:  # belongs to those who asked; the thread goes on
            for request in batch:
                request.answer.set_exception(error)
            return
        for request, answer in zip(batch, answers, strict=True):
            request.answer.set_result(Answer(answer, loaded.version))


def _first(prediction: Prediction, top: int) -> Prediction:
    return prediction._replace(classes=prediction.classes[:top], confidences=prediction.confidences[:top])
