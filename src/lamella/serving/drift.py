"""The drift alarm of a server: what it has been asked to predict, compared with what its model has learned."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from lamella.learner.drift_alarm import EVERY, DriftAlarm
from lamella.learner.learner import Prediction
from lamella.serving.batching import Loaded

__all__ = ["Drift", "DriftWatch"]


class Drift(BaseModel):
    """Whether the samples that were sent to be predicted look unlike what the model has learned."""

    seen: int = Field(description="how many samples were compared since this version is in use")
    unlike: bool = Field(description="whether the alarm is raised: a new task is proposed")
    since: int | None = Field(description="since about which sample they look otherwise, by its number; null if not")
    told: str = Field(description="the same in a line for people")


class DriftWatch:
    """Watches the familiarity of all predictions of a server; of what was sent it keeps counts, and nothing else.

    A new version of the model begins anew, because it has learned something else.

    Args:
        noun: what one sample is called, such as "image".
        every: how many samples there are between two false alarms, at least and on average; see `DriftAlarm`.
    """

    def __init__(self, noun: str, *, every: float = EVERY) -> None:
        self.noun = noun
        self.every = every
        self._of: tuple[int, Mapping[str, Any]] | None = None  # not the model, which could not be freed then
        self._alarm: DriftAlarm | None = None

    def observe(self, loaded: Loaded, predictions: Sequence[Any]) -> None:
        """Watch predictions. Only the thread that owns the model calls this.

        Args:
            loaded: the version that predicted.
            predictions: what it predicted; only a `Prediction` has a familiarity, and answers are passed over.
        """
        if self._of is None or self._of[0] != loaded.version or self._of[1] is not loaded.manifest:
            self._of, self._alarm = (loaded.version, loaded.manifest), None
        familiar = [p.familiarity for p in predictions if isinstance(p, Prediction) and p.familiarity is not None]
        if self._alarm is None and familiar:
            learner = loaded.learner
            self._alarm = DriftAlarm(learner.confidence.images, every=self.every, seed=learner.seed)
        if self._alarm is not None:
            self._alarm.observe(familiar)

    def state(self) -> Drift | None:
        """What is known by now; None where nothing was predicted yet, or nothing is held back to compare with."""
        alarm = self._alarm
        if alarm is None:
            return None
        since = alarm.since if alarm.raised else None
        return Drift(seen=alarm.seen, unlike=alarm.raised, since=since, told=alarm.told(self.noun))
