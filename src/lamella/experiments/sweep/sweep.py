"""A sweep: every trial of a plan is run once, by an engine, and each leaves an ordinary run directory.

A trial whose results are there is not run again, and one that was interrupted goes on; so the same command finishes a
sweep that was stopped in any way.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lamella.common.files import refuse_links
from lamella.common.locks import exclusive_lock
from lamella.experiments.logging.loggers import check_installed
from lamella.experiments.sweep.plan import Trial, check_folders, finished
from lamella.learner.config.document import build_backbone
from lamella.learner.config.precision import AUTO, as_chosen, as_in_runs, choose, measured_on

__all__ = ["Ended", "Engine", "sweep"]

Ended = Callable[[Trial, str], None]
"""What is called when a trial has ended: with the trial, and why it failed, or "" where it did not."""


class Engine(Protocol):
    """Where trials run: `local.Processes`, or any place that sees the same folder and can call `run`."""

    def __call__(self, trials: Sequence[Trial], out: Path, ended: Ended) -> None:
        """Run each trial once in `out / trial.name`, with `resume=True`; a failure of one is no end of the others.

        Args:
            trials: those that are not finished.
            out: the directory of the sweep.
            ended: to be called once for each trial, in the process that called the engine.
        """
        ...


def sweep(
    trials: Sequence[Trial],
    out: Path,
    engine: Engine,
    ended: Ended = lambda trial, failure: None,
    *,
    retries: int = 0,
    again: Ended = lambda trial, failure: None,
) -> dict[str, str]:
    """Run what is not finished yet.

    Args:
        trials: a whole plan, as `Sweep.trials` gives it.
        out: gets the run directory of each trial under the trial's name.
        engine: runs them.
        ended: called after each trial, with why it failed, or "".
        retries: how often a trial that failed is tried again, after all others.
        again: called instead of `ended` where a trial has failed and will be tried again.

    Returns:
        Why it failed for the name of each trial that did.

    Raises:
        ValueError: a run directory holds a run of other settings; nothing was started.
        RuntimeError: the package of a logger is missing; nothing was started.
        BlockingIOError: another sweep is running in `out`.
    """
    refuse_links(*(place for trial in trials for place in _places(trial, out)))
    check_folders(trials, out)
    check_installed({name for trial in trials for name in trial.config["run"].get("loggers", ())})
    failures: dict[str, str] = {}
    with exclusive_lock(out, f"another sweep is running in '{out}'; wait for it or choose another --out"):
        waiting = [trial for trial in with_one_precision(trials, out) if not finished(trial, out)]
        for left in reversed(range(retries + 1)):
            if waiting:
                failures = _failures_of(waiting, out, engine, ended, again if left else ended)
                waiting = [trial for trial in waiting if trial.name in failures]
    return failures


def _failures_of(trials: Sequence[Trial], out: Path, engine: Engine, finished: Ended, failed: Ended) -> dict[str, str]:
    """Run each trial once, call what belongs to its end, and return by name why trials failed."""
    failures: dict[str, str] = {}

    def note(trial: Trial, failure: str) -> None:
        if failure:
            failures[trial.name] = failure
        (failed if failure else finished)(trial, failure)

    engine(trials, out, note)
    return failures


def _places(trial: Trial, out: Path) -> list[Path]:
    folder = out / trial.name
    return [*[parent for parent in folder.parents if parent.is_relative_to(out) and parent != out][::-1], folder]


def with_one_precision(trials: Sequence[Trial], out: Path) -> list[Trial]:
    """The trials with `fit.precision = "auto"` answered: once for each backbone and device, before anything else runs.

    Runs of the sweep that are there already have answered it for those that are not.
    """
    folders, answers = [out / trial.name for trial in trials], dict[str, dict[str, Any]]()

    def answered(trial: Trial) -> Trial:
        if trial.config["fit"]["precision"] != AUTO:
            return trial
        config = as_in_runs(trial.config, folders)
        if config["fit"]["precision"] == AUTO:
            if (where := measured_on(config)) not in answers:
                answers[where] = choose(config, build_backbone(config))
            config = as_chosen(config, answers[where])
        return replace(trial, config=config)

    return [answered(trial) for trial in trials]
