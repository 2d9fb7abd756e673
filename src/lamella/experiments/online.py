"""A run on an online stream: what is measured while samples come in, and what it comes to.

Every batch is predicted before it is learned, and every so many samples the model is tested on the classes that it has
seen. Both are kept with the model after each task, so that a run which was killed goes on at the task that it was in.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lamella.backbones.feature_cache import FeatureCache
from lamella.data.loading import Examples
from lamella.data.scenario import Scenario, Task
from lamella.learner.learner import Learner
from lamella.learner.scores import score_task
from lamella.learner.streaming import Stream, check_online

__all__ = ["OnlineRun", "area_under_curve", "average_online_accuracy"]

NOTE = "online"
EVERY = 1000
"""After so many samples the model is tested again, as in the code of Si-Blurry."""
Counted = list[list[int]]


class OnlineRun:
    """What a run on an online stream measures.

    Args:
        learner: what learns.
        scenario: the stream, whose `batch` says how many samples come in together.
        test: returns the samples on which a task is scored.

    Raises:
        ValueError: the method cannot learn a stream, or clients should learn it.
    """

    def __init__(self, learner: Learner, scenario: Scenario, test: Callable[[int], Examples]) -> None:
        check_online(learner.model)
        if "federated" in learner.config:
            raise ValueError(
                "[federated] has clients that hold whole tasks, and an online stream has none; take one of both away"
            )
        self.learner, self.scenario, self.test = learner, scenario, test
        self.batch = scenario.batch or 1
        self.every = int(learner.config["run"].get("measure_every", EVERY))
        self._incoming: Counted = []
        self._anytime: Counted = []
        self._parts: dict[int, tuple[Examples, FeatureCache]] = {}

    def stream(self, i: int) -> Stream:
        """How task i comes in, and what is measured meanwhile.

        Args:
            i: the number of the task.
        """
        self._incoming, self._anytime = [], []
        before = sum(len(self.scenario[j].train) for j in range(i))
        size = len(self.scenario[i].train)
        last = i == len(self.scenario) - 1
        done = before

        def after(learned: int) -> None:
            nonlocal done
            now = before + learned
            if now // self.every > done // self.every or (last and learned == size):
                self._anytime.append([now, *self._tested()])
            done = now

        return Stream(self.batch, self._predict, after)

    def keep(self) -> dict[str, float]:
        """Note with the model what was measured in the task that was just learned; return the figures so far."""
        notes = self.learner.notes.setdefault(NOTE, [])
        notes.append({"incoming": self._incoming, "anytime": self._anytime})
        found = self.results()
        return {key: found[key] for key in ("average_online_accuracy", "anytime_accuracy") if found[key] is not None}

    def results(self) -> dict[str, Any]:
        """What the result file has of the tasks learned so far."""
        incoming: Counted = [row for task in self.learner.notes[NOTE] for row in task["incoming"]]
        anytime: Counted = [row for task in self.learner.notes[NOTE] for row in task["anytime"]]
        curve = [right / tested for _, tested, right in anytime]
        return {
            "average_online_accuracy": average_online_accuracy(incoming),
            "anytime_accuracy": area_under_curve([row[0] for row in anytime], curve) if anytime else None,
            "online": {"batch": self.batch, "measure_every": self.every, "incoming": incoming, "anytime": anytime},
        }

    def _predict(self, piece: Task) -> None:
        """Count how many of a batch are right before it is learned; what is of a new class is wrong."""
        known = self._of_known(piece.train)
        self._incoming.append([len(piece.train), self._right(known, piece.name) if len(known) else 0])

    def _tested(self) -> list[int]:
        """How many test samples there are of the classes seen so far, and how many of them are right."""
        tested = right = 0
        for j in range(len(self.scenario)):
            part = self._of_known(self.test(j))
            if j not in self._parts or len(self._parts[j][0]) != len(part):  # classes are only added
                self._parts[j] = part, FeatureCache()
            part, recall = self._parts[j]
            if len(part):
                tested += len(part)
                right += self._right(part, f"anytime, test on {j}", recall)
        return [tested, right]

    def _of_known(self, data: Examples) -> Examples:
        known = torch.isin(data.labels, torch.tensor(self.learner.method.classes, dtype=torch.int64))
        return data.subset(known.nonzero()[:, 0])

    def _right(self, data: Examples, name: str, recall: FeatureCache | None = None) -> int:
        # Not by `Learner.evaluate`, which refuses a learner in the middle of a task.
        learner = self.learner
        fit = learner.fit()
        fit.begin(name)
        method = learner.method.eval()
        scores = score_task(method, fit, data, method.classes, shared_classes=True, name="score", recall=recall)
        return scores[""].right


def average_online_accuracy(incoming: Sequence[Sequence[int]]) -> float:
    """The share of incoming samples that were right before they were learned.

    Args:
        incoming: the number of samples of each batch, and of those that were right.

    >>> average_online_accuracy([[4, 0], [4, 3]])
    0.375
    """
    return sum(right for _, right in incoming) / sum(samples for samples, _ in incoming)


def area_under_curve(samples: Sequence[int], accuracies: Sequence[float]) -> float:
    """The area under a curve of accuracy, divided by the length of the stream: the mean where steps are equal.

    Each accuracy counts for the samples that were learned since the measurement before.

    Args:
        samples: how many samples were learned at each measurement, in rising order.
        accuracies: what was measured then, 0..1.

    >>> area_under_curve([100, 200, 250], [0.5, 0.75, 1.0])
    0.7
    """
    steps = [now - before for before, now in zip([0, *samples], samples, strict=False)]
    return sum(step * accuracy for step, accuracy in zip(steps, accuracies, strict=True)) / samples[-1]
