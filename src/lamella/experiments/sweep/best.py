"""The best setting of a sweep by a metric, for sweeps that were scored on validation images alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.common.options import near_matches
from lamella.common.words import many
from lamella.experiments.metrics import METRICS
from lamella.experiments.report.summary import Spread, spread
from lamella.experiments.results_files import read_result
from lamella.experiments.sweep.plan import Trial

__all__ = ["Best", "best", "check_choice"]

OF_THE_CHOICE = ("run.seed", "run.evaluate_on", "run.selection", "scenario.validation", "scenario.first_tasks")
"""Changes that a test run of the chosen setting does not take over."""


@dataclass(frozen=True)
class Best:
    """The best group of trials.

    Attributes:
        group: the trials' name without the seed; empty where there was one setting only.
        settings: how many were compared.
        value: the metric over the group's seeds, a fraction.
        selection: how it was chosen, for `run.selection`.
        changes: what makes it out of the configuration of the sweep, for a run on test images.
    """

    group: str
    settings: int
    value: Spread
    selection: str
    changes: tuple[str, ...]


def check_choice(trials: Sequence[Trial], metric: str) -> None:
    """Make sure that a choice by this metric would be an honest one.

    Raises:
        ValueError: there is no such metric, or a trial is scored on test images.
    """
    if metric not in (known := [m.name for m in METRICS]):
        raise ValueError(f"unknown metric '{metric}'; {near_matches(metric, known)}")
    if any(trial.config["run"]["evaluate_on"] != "validation" for trial in trials):
        raise ValueError(
            "a setting that is chosen by its accuracy on test images says nothing about new images; choose on a "
            "validation part: run.evaluate_on=validation scenario.validation=0.2"
        )


def best(trials: Sequence[Trial], out: Path, metric: str) -> Best:
    """The setting with the best mean over its seeds; of equal ones the first.

    Args:
        trials: of a finished sweep.
        out: the directory of the sweep.
        metric: a key of result files, such as "final_accuracy".

    Raises:
        ValueError: as `check_choice`; or the metric was not measured.
        FileNotFoundError: a trial has no results.
    """
    check_choice(trials, metric)
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    means = {group: _spread(own, out, metric) for group, own in groups.items()}
    lower = next(m.lower_is_better for m in METRICS if m.name == metric)
    chosen = (min if lower else max)(means, key=lambda group: means[group].mean)
    changes = [text for text in groups[chosen][0].changes if text.partition("=")[0] not in OF_THE_CHOICE]
    first = groups[chosen][0].config["scenario"].get("first_tasks")
    where = f" of the first {first} tasks" if first else ""
    told = f"best {metric} of {many(len(groups), 'setting')} on a validation part{where}"
    changes += ["scenario.first_tasks="] if first else []  # also where the configuration itself has it
    return Best(chosen, len(groups), means[chosen], told, (*changes, "run.evaluate_on=test", f"run.selection={told}"))


def _spread(trials: Sequence[Trial], out: Path, metric: str) -> Spread:
    found = spread(read_result(out / trial.name / "results.json").metrics[metric] for trial in trials)
    if found is None:
        raise ValueError(f"{metric} was not measured in '{trials[0].name}'; choose by another metric")
    return found
