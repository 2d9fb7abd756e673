"""The parts that run behind the routes of one server."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamella.serving.answers import AnswerKind
from lamella.serving.batching import Batcher
from lamella.serving.drift import DriftWatch
from lamella.serving.images import ImageKind
from lamella.serving.jobs import Jobs
from lamella.serving.kind import Kind
from lamella.serving.limits import Limits
from lamella.serving.measures import Measures
from lamella.serving.model_watcher import ModelWatcher, load
from lamella.serving.predicting import PredictionQueue
from lamella.serving.texts import TextKind
from lamella.serving.uploads_kept import check_places, interrupted

__all__ = ["Service"]

log = logging.getLogger("lamella.serve")


KINDS: dict[str, Callable[[Limits], Kind[Any]]] = {"image": ImageKind, "text": TextKind, "answer": AnswerKind}
"""The samples that can be sent, by what one of them is called."""


class Service:
    """The parts that run behind the routes of one server: the batcher, the watcher of the folder, and the jobs.

    It serves samples of one kind, that of the model when it starts. A model of another kind in its folder is not used.

    Args:
        model: the model's folder.
        limits: the bounds on requests.
        device: what to compute on; None for a GPU if there is one.
        trusted: False for a folder of a stranger; see `Learner.load`.

    Raises:
        FileNotFoundError: there is no model at `model`.
        ValueError: the model cannot be read or takes samples that cannot be sent, or a folder that Lamella makes inside
            it is a symbolic link.
    """

    def __init__(self, model: Path, limits: Limits, device: str | None = None, *, trusted: bool = True) -> None:
        self.model = model
        check_places(model)
        loaded = load(model, device, trusted=trusted)
        noun = loaded.learner.backbone.transform.noun
        if noun not in KINDS:
            raise ValueError(f"'{model}' takes {noun}s, and models of {'s, '.join(KINDS)}s can be served")
        self.limits = limits if noun == ImageKind.noun else limits.of_texts()
        self.kind = KINDS[noun](self.limits)
        self.drift = DriftWatch(self.kind.noun)
        self.measures = Measures(
            noun=self.kind.noun,
            version=lambda: self.batcher.loaded.version,
            waiting=lambda: self.desk.waiting,
            learning=lambda: float(self.jobs.learning is not None),
            drift=self._drift if self.kind.noun != AnswerKind.noun else None,  # answers have no familiarity
        )
        self.batcher: Batcher[Any] = Batcher(
            loaded,
            self.kind.predict,
            together=self.kind.together,
            observe=self.measures.batches.observe,
            watch=self.drift.observe,
        )
        self.desk = PredictionQueue(self.batcher, self.kind, self.limits)
        self.follower = ModelWatcher(model, self.batcher, device=device, trusted=trusted)
        self.jobs = Jobs(model, self.follower.catch_up, seconds=limits.learn_seconds, device=device, trusted=trusted)

    def _drift(self) -> float:
        return float((state := self.drift.state()) is not None and state.unlike)

    def go_on(self) -> None:
        """Resume the jobs that an earlier server of this model could not finish."""
        if (left := interrupted(self.model)) and self.jobs.claim():
            for sent in left:
                log.warning("%s: its learning was interrupted and resumes", sent.note["name"])
            self.jobs.start(left)

    def close(self) -> None:
        """End every thread and process. Queued requests are answered first; an unfinished job can be resumed later."""
        for part in (self.jobs, self.follower, self.kind, self.batcher):
            part.close()
