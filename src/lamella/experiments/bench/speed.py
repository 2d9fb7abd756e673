"""Times each phase of learning and a prediction, relative to a frozen forward pass over the same images."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.experiments.bench.streams import quick_learner, synthetic_task
from lamella.learner.config.document import build_backbone
from lamella.learner.learner import Learner
from lamella.training.precision import PRECISIONS

__all__ = ["Phase", "Speed", "measure_speed"]

FORWARD, PREDICTION = "frozen forward", "prediction"


@dataclass(frozen=True)
class Phase:
    """The time of one phase.

    Attributes:
        milliseconds: the time per image, and per epoch if the phase trains.
        ratio: the time as a multiple of the frozen forward pass in float32.
    """

    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class Speed:
    """The result of the measurement.

    Attributes:
        phases: by precision and name, the time of each phase.
        waited: by precision, the share of learning in which the computation waited for images, 0..1.
    """

    phases: dict[str, dict[str, Phase]]
    waited: dict[str, float]

    @property
    def fastest(self) -> str:
        """The precision with the shortest time of learning."""
        whole = {
            precision: sum(p.milliseconds for name, p in phases.items() if name not in (FORWARD, PREDICTION))
            for precision, phases in self.phases.items()
        }
        return min(whole, key=lambda precision: whole[precision])


def measure_speed(
    backbone: Mapping[str, Any],
    method: str = "inflora",
    *,
    batch: int = 32,
    images: int = 128,
    repeats: int = 3,
    device: str = "auto",
) -> Speed:
    """Learn `repeats` tasks in each precision, in turn, after one that does not count.

    Args:
        backbone: a table of the arguments of `load_backbone`.
        method: the name of the method with its parts, such as "inflora+align".
        batch: the number of images in a training step, at least 2.
        images: the number of images of each task, at least 2.
        repeats: the number of counted rounds, at least 1.
        device: "cpu", "cuda" or "auto".

    Raises:
        ValueError: a setting is refused by `quick_learner`.
    """
    learners = {p: quick_learner(backbone, method, batch, {"precision": p, "device": device}) for p in PRECISIONS}
    plain = build_backbone(learners["float32"].config).to(learners["float32"].fit().device)
    rounds: dict[str, list[dict[str, float]]] = {precision: [] for precision in learners}
    for number in range(1 + repeats):
        for precision, learner in learners.items():
            found = _one_round(learner, plain, synthetic_task(number, images, plain.transform))
            if number:
                rounds[precision].append(found)
    units = [found[FORWARD] for found in rounds["float32"]]
    phases = {
        precision: {
            name: Phase(
                1000 * statistics.median(f[name] for f in found),
                statistics.median(f[name] / unit for f, unit in zip(found, units, strict=True)),
            )
            for name in found[0]
            if name != "waited"
        }
        for precision, found in rounds.items()
    }
    return Speed(phases, {p: statistics.median(f["waited"] for f in found) for p, found in rounds.items()})


def _one_round(learner: Learner, plain: Backbone, task: Task) -> dict[str, float]:
    """Measure the seconds per image of each phase, and the share of learning that waited for images."""
    n = len(task.train)
    record = learner.learn(task)
    fit = learner.fit()
    found: dict[str, float] = {}
    for name, read in ((FORWARD, plain), (PREDICTION, learner.method.eval().predict)):
        started = time.perf_counter()
        fit.scan(task.train, lambda x, y, read=read: read(x), name=name)
        found[name] = (time.perf_counter() - started) / n
    seconds = {name: spent / n for name, spent in record.seconds.items() if name != "total"}
    other = record.seconds["total"] / n - sum(seconds.values())
    return found | seconds | {"other": max(other, 0.0), "waited": record.waited / record.seconds["total"]}
