"""All that runs behind the routes of one server."""

import logging
from pathlib import Path

from lamella.serving.batching import Batcher
from lamella.serving.jobs import Jobs
from lamella.serving.limits import Limits
from lamella.serving.measures import Measures
from lamella.serving.model_watcher import Follower, load
from lamella.serving.predicting import Desk
from lamella.serving.uploads_kept import check_places, interrupted

__all__ = ["Service"]

log = logging.getLogger("lamella.serve")


class Service:
    """All that runs behind the routes.

    Args:
        model: folder of the model. limits: on requests.
    """

    def __init__(self, model: Path, limits: Limits) -> None:
        self.model, self.limits = model, limits
        check_places(model)
        loaded = load(model)
        self.measures = Measures(
            version=lambda: self.batcher.loaded.version, waiting=lambda: self.desk.waiting,
            learning=lambda: float(self.learning is not None),
        )  # fmt: skip
        self.batcher = Batcher(loaded, observe=self.measures.images.observe)
        self.desk = Desk(self.batcher, limits)
        self.follower = Follower(model, self.batcher)
        self.jobs = Jobs(model, self.follower.catch_up, seconds=limits.learn_seconds)

    @property
    def learning(self) -> int | None:
        """The id of the job that is under way."""
        return next((job.id for job in self.jobs.known.values() if job.state == "learning"), None)

    def go_on(self) -> None:
        """Learn what an earlier server of this model took in and could not finish."""
        if (left := interrupted(self.model)) and self.jobs.claim():
            for sent in left:
                log.warning("%s: its learning was interrupted and goes on", sent.note["name"])
            self.jobs.start(left)

    def close(self) -> None:
        """End every thread and process; what was asked is answered first, an unfinished learning stays to go on."""
        for part in (self.jobs, self.follower, self.desk, self.batcher):
            part.close()
