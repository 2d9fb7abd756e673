"""Trials as tasks of Ray: on this machine, or on a cluster whose machines see the folder of the sweep under one path.

Ray gives a task to another worker when the one that had it is lost; the trial goes on from its last checkpoint.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lamella.experiments.sweep.plan import Trial
from lamella.experiments.sweep.sweep import Ended
from lamella.experiments.sweep.worker import carry_out, environment

__all__ = ["RayTasks"]

LOST_WORKERS = 3
"""So many lost workers of one trial are borne; then the trial has failed."""


class RayTasks:
    """An engine that runs each trial as one task of Ray, in a process of its own.

    Args:
        address: that of a cluster, such as "auto" or "ray://head:10001"; None starts one on this machine, which ends
            with the sweep.
        number: the trials at a time on this machine; a cluster runs as many as its resources allow.
        resources: what a trial asks for, as `ray.remote` takes it: `num_cpus` (1 if left out), `num_gpus`, `memory`.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """

    def __init__(self, address: str | None = None, number: int = 1, resources: Mapping[str, Any] | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone unless the user wants it
        try:
            self.ray: Any = import_module("ray")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("engine 'ray' needs Ray: pip install 'lamella[ray]'") from error
        self.address, self.number = address, number
        self.resources = {"num_cpus": 1} | dict(resources or {})

    def __call__(self, trials: Sequence[Trial], out: Path, ended: Ended) -> None:
        ray = self.ray
        options = {"max_calls": 1, "max_retries": LOST_WORKERS, "retry_exceptions": False, **self.resources}
        task: Any = ray.remote(**options)(carry_out)  # before a cluster is started, since it checks the resources
        here: dict[str, Any] = {} if self.address else {"num_cpus": self.number * self.resources["num_cpus"]}
        ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
        try:
            place, environ = str(Path.cwd()), environment()
            running = {
                task.remote(trial.config, str((out / trial.name).resolve()), place, environ): trial for trial in trials
            }
            while running:
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                ended(running.pop(done), self._failure(done))
        finally:
            ray.shutdown()  # ends what still runs for this sweep

    def _failure(self, done: Any) -> str:
        try:
            return str(self.ray.get(done))
        except self.ray.exceptions.RayError as error:
            return f"its worker was lost: {str(error).splitlines()[0]}"
