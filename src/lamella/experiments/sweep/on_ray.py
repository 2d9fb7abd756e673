"""Trials as tasks of Ray: on this machine, or on a cluster whose machines see the folder of the sweep under one path.

Ray gives a task to another worker when the one that had it is lost; the trial goes on from its last checkpoint.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamella.common.checks import first_line
from lamella.common.on_ray import check_resources, cluster, import_ray
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
        ValueError: a trial asks for what Ray does not know.
    """

    def __init__(self, address: str | None = None, number: int = 1, resources: Mapping[str, Any] | None = None) -> None:
        self.resources = check_resources(resources or {})
        self.ray = import_ray()
        self.address, self.number = address, number

    def __call__(self, trials: Sequence[Trial], out: Path, ended: Ended) -> None:
        ray = self.ray
        options = {"max_calls": 1, "max_retries": LOST_WORKERS, "retry_exceptions": False, **self.resources}
        task: Any = ray.remote(**options)(carry_out)  # before a cluster is started, since it checks the resources
        with cluster(ray, self.address, self.resources, self.number):
            place, environ = str(Path.cwd()), environment()
            running = {
                task.remote(trial.config, str((out / trial.name).resolve()), place, environ): trial for trial in trials
            }
            while running:
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                ended(running.pop(done), self._failure(done))

    def _failure(self, done: Any) -> str:
        try:
            return str(self.ray.get(done))
        except self.ray.exceptions.RayError as error:
            return f"its worker was lost: {first_line(error)}"
