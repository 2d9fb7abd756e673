"""One thread owns the model and answers the requests of many clients in batches."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from lamella.learner.learner import Learner, Prediction

__all__ = ["Answer", "Batcher", "Loaded", "Predict"]

Inputs = TypeVar("Inputs", bound=Sized)
"""The samples of one request; its length is their number."""


class Loaded(NamedTuple):
    """One loaded version of a model, used by a single thread.

    Attributes:
        learner: the loaded model.
        version: the number of this version in the model's folder.
        manifest: the metadata of this version, as read from the model's folder.
    """

    learner: Learner
    version: int
    manifest: Mapping[str, Any] = MappingProxyType({})


class Answer(NamedTuple):
    """The answer to one request.

    Attributes:
        predictions: one for each sample, in the order of the request; a `Prediction` where samples have classes.
        version: the number of the model's version that predicted.
    """

    predictions: list[Any]
    version: int


Predict = Callable[[Learner, Sequence[Inputs], int], list[Any]]
"""(model, samples of several requests, how many classes to name) -> what it says of each sample, in their order.

That is a `Prediction` for samples that have classes."""


class _Request(NamedTuple, Generic[Inputs]):
    x: Inputs
    top: int
    answer: "Future[Answer]"


class Batcher(Generic[Inputs]):
    """Predicts for many clients at once.

    Branches are switched in place (`using`, `watch`), so only one thread may use a model: the one of this class. A new
    model assigned to `loaded` answers from the next batch on. The current batch is still answered by the old model.

    Args:
        loaded: the model to start with.
        predict: what it predicts by.
        together: a batch with at least this many samples waits for no further request. A request is never divided, so a
            batch may be larger.
        patience: how many seconds after the last answer a batch may still wait for more requests; at least 0. If a
            quarter of the time that the last batch took is less, it waits no longer than that. It starts as soon as
            there are as many requests as there were clients: those who were just answered and may ask again, and those
            who asked meanwhile. So a client that is alone does not wait.
        observe: a function that is called with the number of samples of each batch.
        watch: a function that is called with the model and all predictions of each batch, by the thread of this class.

    Attributes:
        answering: the number of the version that answers the newest batch.
    """

    def __init__(
        self,
        loaded: Loaded,
        predict: Predict[Inputs],
        *,
        together: int = 32,
        patience: float = 0.02,
        observe: Callable[[int], None] = lambda samples: None,
        watch: Callable[[Loaded, Sequence[Any]], None] = lambda loaded, predictions: None,
    ) -> None:
        self.loaded = loaded
        self.answering = loaded.version
        self.predict = predict
        self.together = together
        self.patience = patience
        self.observe = observe
        self.watch = watch
        self._expected, self._until = 1, 0.0
        self._requests: queue.SimpleQueue[_Request[Inputs] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lamella-model", daemon=True)
        self._thread.start()

    def submit(self, x: Inputs, top: int) -> "Future[Answer]":
        """Queue a request for prediction.

        Args:
            x: the samples of the request, at least one.
            top: how many classes to name for each sample, at least 1.

        Returns:
            A future of the answer. It raises what the prediction raised.
        """
        answer: Future[Answer] = Future()
        self._requests.put(_Request(x, top, answer))
        return answer

    def close(self) -> None:
        """Answer the requests that were queued before, then end the thread."""
        self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            batch, open_ = self._next_batch()
            waiting = [request for request in batch if request.answer.set_running_or_notify_cancel()]
            if waiting:
                self._answer(waiting, self.loaded)

    def _next_batch(self) -> tuple[list[_Request[Inputs]], bool]:
        """Return the requests to answer together, and whether further requests may follow."""
        batch: list[_Request[Inputs]] = []
        samples = 0
        while samples < self.together:
            try:
                # A request that is queued already is taken in any case: it arrived during the last batch.
                left = None
                if batch:
                    left = max(0.0, self._until - time.monotonic()) if len(batch) < self._expected else 0.0
                request = self._requests.get(timeout=left) if left is None or left else self._requests.get_nowait()
            except queue.Empty:
                break
            if request is None:
                return batch, False
            batch.append(request)
            samples += len(request.x)
        return batch, True

    def _answer(self, batch: Sequence[_Request[Inputs]], loaded: Loaded) -> None:
        self.answering = loaded.version
        started = time.monotonic()
        try:
            top = max(request.top for request in batch)
            found = self.predict(loaded.learner, [request.x for request in batch], top)
            self.watch(loaded, found)
            predictions = iter(found)
            self.observe(sum(len(request.x) for request in batch))
            self._expected, ended = len(batch) + self._requests.qsize(), time.monotonic()
            self._until = ended + min(self.patience, (ended - started) / 4)
            answers = [[_first(next(predictions), r.top) for _ in range(len(r.x))] for r in batch]
        except Exception as error:  # the clients receive the error, and the thread continues
            for request in batch:
                request.answer.set_exception(error)
            return
        for request, answer in zip(batch, answers, strict=True):
            request.answer.set_result(Answer(answer, loaded.version))


def _first(prediction: Any, top: int) -> Any:
    """Keep the best `top` classes of a prediction; what has no classes stays whole."""
    if not isinstance(prediction, Prediction):
        return prediction
    return prediction._replace(classes=prediction.classes[:top], confidences=prediction.confidences[:top])
