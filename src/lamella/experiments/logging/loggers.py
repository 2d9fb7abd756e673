"""The loggers: each writes numbers with a step, by the library that people look at them with.

    csv             OUT/metrics.csv, one line a number: metric, step, value
    tensorboard     OUT/tensorboard, event files (extra "tensorboard")
    mlflow          $MLFLOW_TRACKING_URI, or files in OUT/mlflow (extra "mlflow")
    wandb           OUT/wandb, offline unless $WANDB_MODE says otherwise (extra "wandb")

A logger knows nothing of runs: `events.py` decides what is logged and when. Libraries are imported when a logger opens.
"""

import csv
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

__all__ = ["LOGGERS", "Logger", "check_installed"]

Settings = Mapping[str, Any]
"""The settings of a run by dotted name, such as "method.rank"."""


class Logger(Protocol):
    """Takes numbers, for as long as a run lasts."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write down numbers by the names of their metrics, all of one step, so that they can be looked at now."""
        ...

    def close(self) -> None:
        """Write what is left, and end."""
        ...


class CSVLogger:
    """A table with a line for each number. A run that goes on adds to it."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self.path = out / "metrics.csv"
        if not self.path.exists():
            self.path.write_text("metric,step,value\n", encoding="utf-8")

    def log(self, values: Mapping[str, float], step: int) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows((name, step, value) for name, value in values.items())

    def close(self) -> None:
        pass


class TensorBoardLogger:
    """Event files of TensorBoard, which are flushed after every step."""

    def __init__(self, out: Path, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(out / "tensorboard")
        self.writer.add_text("settings", "\n".join(f"    {name} = {value}" for name, value in settings.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class MLflowLogger:
    """A run of MLflow. One that goes on is found again by the identity that is kept in the run directory."""

    def __init__(self, out: Path, settings: Settings) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (out / "mlflow").absolute().as_uri()
        self.client, kept = import_module("mlflow.tracking").MlflowClient(uri), out / "mlflow-run.txt"
        if kept.exists():
            self.run = kept.read_text(encoding="utf-8").strip()
            self.client.update_run(self.run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lamella"
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.run = self.client.create_run(experiment, run_name="/".join(out.absolute().parts[-2:])).info.run_id
        kept.write_text(self.run + "\n", encoding="utf-8")
        for setting, value in settings.items():
            self.client.log_param(self.run, setting, str(value)[:500])

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


class WandbLogger:
    """A run of Weights & Biases: each metric over its own step, since epochs and tasks are counted apart."""

    def __init__(self, out: Path, settings: Settings) -> None:
        wandb = import_module("wandb")
        kept = out / "wandb-run.txt"
        if not kept.exists():
            kept.write_text(f"{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "lamella",
            name="/".join(out.absolute().parts[-2:]),
            id=kept.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=out,
            mode=mode,
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.defined: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            own_step = f"step/{name}"  # a dot would be a level of nesting
            if name not in self.defined:
                self.run.define_metric(own_step, hidden=True)
                self.run.define_metric(name, step_metric=own_step)
                self.defined.add(name)
            self.run.log({name: value, own_step: step})

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, Callable[[Path, Settings], Logger]] = {
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}
"""The loggers by name. All but "csv" need the package, and the extra, of the same name."""


def check_installed(names: Iterable[str]) -> None:
    """Make sure that the package of each logger is there, before anything is computed.

    Raises:
        RuntimeError: a package is missing.
    """
    for name in names:
        if name != "csv" and find_spec(name) is None:
            raise RuntimeError(
                f"run.loggers has '{name}', whose package is missing: pip install 'lamella[{name}]', or take it out"
            )
