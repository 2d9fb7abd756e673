"""What happens in a run, told in one place: to `log.jsonl`, and as numbers to the loggers.

`LOGGED` has the names and steps of these numbers. A run that goes on tells nothing twice, because `log.jsonl` has what
was told before. A logger that fails is said once and left out from then on; the run goes on without it.
"""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamella.common.checks import first_line
from lamella.experiments.logging.loggers import LOGGERS, Logger, check_installed
from lamella.training import processes

__all__ = ["LOGGED", "Events", "LoggerFailed"]

LOGGED = {
    "loss/CALL": ("epochs", "mean loss of an epoch; CALL names the training, `train` for most methods"),
    "accuracy/all": ("tasks", "accuracy on all tasks learned so far, after each task"),
    "accuracy/task-J": ("tasks", "accuracy on task J (from 0), after each task"),
    "score/NAME, score/NAME/task-J": ("tasks", "of answers: each score, mean of the tasks so far, and of task J"),
    "seconds/learn": ("tasks", "seconds that learning the task took"),
    "final/NAME": ("tasks", "at the end, each metric of the result by its key, such as `final/final_accuracy`"),
}
"""The metrics: their names, what their steps count since the beginning of the run, and what they are."""


class LoggerFailed(UserWarning):
    """A logger could not write, and is left out for the rest of the run."""


class Events:
    """The events of one run directory. Of several processes that learn together, the first tells them.

    Args:
        out: the run directory.
        names: the loggers, of LOGGERS.
        settings: the settings of the run, by dotted name.

    Raises:
        RuntimeError: the package of a logger is missing.
    """

    def __init__(self, out: Path, names: Sequence[str], settings: Mapping[str, Any]) -> None:
        check_installed(names)
        self.out, self.names, self.settings = out, names, settings
        self.path = out / "log.jsonl"
        self.loggers: dict[str, Logger] | None = None
        told = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        self._epochs = {key for line in told.splitlines() if (key := _epoch_of(line)) is not None}
        self._torn = bool(told) and not told.endswith("\n")

    def tell(self, event: str, **facts: Any) -> None:
        """Write an event down.

        Args:
            event: its name.
            facts: what is to be known of it, as JSON has it.
        """
        if not processes.leads():
            return
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "event": event, **facts})
        with self.path.open("a", encoding="utf-8") as file:
            # A line that a kill has cut off must not take the next one with it.
            file.write(f"\n{line}\n" if self._torn else f"{line}\n")
        self._torn = False

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Give numbers to the loggers.

        Args:
            values: by the name of the metric; None is left out.
            step: epochs or tasks since the beginning of the run; LOGGED says which.
        """
        measured = {name: value for name, value in values.items() if value is not None}
        for name in list(self._open()):
            self._try(name, lambda logger: logger.log(measured, step))

    def epoch(self, task: str, call: str, epoch: int, loss: float) -> None:
        """Tell of a finished epoch; a listener of the training loop. One that is trained again is not told again."""
        key = (task, call, epoch)
        if key not in self._epochs:
            self._epochs.add(key)
            step = sum(name == call for _, name, _ in self._epochs)
            self.tell("epoch", task=task, call=call, epoch=epoch, loss=loss)
            self.log({f"loss/{call}": loss}, step)

    def close(self) -> None:
        """Close the loggers."""
        for name in list(self.loggers or ()):
            self._try(name, lambda logger: logger.close())
        self.loggers = None

    def _open(self) -> dict[str, Logger]:
        """Return the loggers, which open when there is something to log."""
        if self.loggers is None:
            self.loggers = {}
            for name in self.names if processes.leads() else ():
                try:
                    self.loggers[name] = LOGGERS[name](self.out, self.settings)
                except Exception as error:  # each library has its own kinds
                    _say(name, error)
        return self.loggers

    def _try(self, name: str, do: Any) -> None:
        assert self.loggers is not None
        try:
            do(self.loggers[name])
        except Exception as error:  # each library has its own kinds
            del self.loggers[name]
            _say(name, error)


def _say(name: str, error: Exception) -> None:
    told = f"the logger '{name}' failed and is left out from here on: {type(error).__name__}: {first_line(error)}"
    warnings.warn(LoggerFailed(told), stacklevel=2)


def _epoch_of(line: str) -> tuple[str, str, int] | None:
    """Return which epoch a line of the log tells of, if it does; the last line of a killed run may be cut off."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return (told["task"], told["call"], told["epoch"]) if told.get("event") == "epoch" else None
