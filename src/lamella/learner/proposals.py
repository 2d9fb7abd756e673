"""What a model would make of new data: whether they are a task, judged before anything is learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lamella.common.randomness import generator
from lamella.data.sources.readable import ReadableData
from lamella.learner.drift_alarm import EVERY, DriftAlarm
from lamella.learner.model import Model
from lamella.learner.next_task import new_samples
from lamella.learner.predictions import predict

__all__ = ["Lookout", "Proposal"]


@dataclass(frozen=True)
class Proposal:
    """What a model would make of a data set.

    Attributes:
        noun: what one sample is called.
        samples: how many of its samples the model has neither learned nor held back.
        new: the names of their classes that the model does not know.
        more_of: the names of those that it knows.
        alarm: the drift alarm that has watched them and those of earlier data sets; None where the model has nothing
            held back to compare with.
    """

    noun: str
    samples: int
    new: Sequence[str]
    more_of: Sequence[str]
    alarm: DriftAlarm | None

    @property
    def is_task(self) -> bool:
        """Whether a new task is proposed: there are new classes, or known ones look unlike what was learned."""
        return bool(self.new) or (self.alarm is not None and self.alarm.raised)


class Lookout:
    """Looks at data sets as they come in, without learning from them.

    Args:
        model: the model, which is not changed.
        every: how many samples there are between two false alarms, at least and on average; see `DriftAlarm`.
    """

    def __init__(self, model: Model, *, every: float = EVERY) -> None:
        self.model = model
        held_back = model.confidence.images if model.tasks else 0
        self.alarm = DriftAlarm(held_back, every=every, seed=model.seed) if held_back else None
        self._watched: set[int] = set()

    def look(self, data: ReadableData) -> Proposal:
        """Say what the model would make of a data set. Samples that it was shown before are not watched again.

        Args:
            data: the data set, whose labels are believed.

        Raises:
            ValueError: the model takes other samples, or has learned all of these.
        """
        self.model.check_takes(data.whole)
        new, _ = new_samples(self.model, data, again=False)
        train, known = new.whole.train, self.model.ids()
        names = [new.whole.class_names[label] for label in train.labels.unique().tolist() if label >= 0]
        self._watch(new)
        return Proposal(
            train.noun,
            len(train),
            [name for name in names if name not in known],
            [name for name in names if name in known],
            self.alarm,
        )

    def _watch(self, data: ReadableData) -> None:
        train = data.whole.train
        unwatched = [i for i, key in enumerate(train.keys) if data.digests[key] not in self._watched]
        if self.alarm is None or not unwatched:
            return
        # Folders list class by class, and a test of a stream needs an order that says nothing of its samples.
        draws = generator(self.model.seed, "lookout", self.alarm.seen)
        order = [unwatched[i] for i in torch.randperm(len(unwatched), generator=draws).tolist()]
        found = predict(self.model, train.subset(order), top=1)
        self.alarm.observe([each.familiarity for each in found if each.familiarity is not None])
        self._watched |= {data.digests[train.keys[i]] for i in order}
