"""Trials as jobs of SLURM, one array of them, through submitit. The jobs see the folder of the sweep under one path."""

import shutil
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lamella.common.printable import one_line
from lamella.experiments.sweep.plan import Trial
from lamella.experiments.sweep.sweep import Ended
from lamella.experiments.sweep.worker import carry_out, environment

__all__ = ["SlurmJobs"]


class Resumed:
    """`carry_out`; submitit puts it back into the queue at its time limit, and then it goes on where it was."""

    def __call__(self, *arguments: Any) -> str:
        return carry_out(*arguments)

    def checkpoint(self, *arguments: Any) -> Any:
        return import_module("submitit").helpers.DelayedSubmission(self, *arguments)


class SlurmJobs:
    """An engine that submits all trials as one array of jobs, and waits for them.

    Args:
        number: the jobs that run at a time.
        resources: what a job asks for, as submitit's `update_parameters` takes it: `timeout_min`, `cpus_per_task`,
            `gpus_per_node`, `mem_gb`, `slurm_partition` and others.
        cluster: "slurm", or "local" for processes on this machine, without limits, to try it.
        seconds: between two looks at the jobs.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        FileNotFoundError: jobs cannot be submitted from this machine.
    """

    def __init__(
        self,
        number: int = 1,
        resources: Mapping[str, Any] | None = None,
        *,
        cluster: str = "slurm",
        seconds: float = 10.0,
    ) -> None:
        try:
            self.submitit: Any = import_module("submitit")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("engine 'slurm' needs submitit: pip install 'lamella[slurm]'") from error
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise FileNotFoundError(
                "engine 'slurm' needs the command sbatch, which is not here; call it where jobs are submitted, or "
                "choose --engine local"
            )
        self.resources = dict(resources or {})
        if cluster == "slurm":
            self.resources |= {"slurm_array_parallelism": number}
        self.cluster, self.seconds = cluster, seconds

    def __call__(self, trials: Sequence[Trial], out: Path, ended: Ended) -> None:
        executor = self.submitit.AutoExecutor(folder=out / "jobs" / "%j", cluster=self.cluster)
        try:
            executor.update_parameters(**({"name": "lamella"} | self.resources))
        except (AssertionError, NameError) as error:  # what submitit raises for a value and for a name
            raise ValueError(f"--resource: {one_line(str(error))}") from error
        place, environ = str(Path.cwd()), environment()
        with executor.batch():
            jobs = [
                executor.submit(Resumed(), dict(trial.config), str((out / trial.name).resolve()), place, environ)
                for trial in trials
            ]
        running = dict(zip(jobs, trials, strict=True))
        try:
            while running:
                for job in [job for job in running if job.done()]:
                    ended(running.pop(job), self._failure(job))
                time.sleep(self.seconds if running else 0)
        finally:
            for job in running:
                job.cancel()

    def _failure(self, job: Any) -> str:
        try:
            return str(job.result())
        except (self.submitit.core.utils.UncompletedJobError, self.submitit.core.utils.FailedJobError) as error:
            return f"its job {job.job_id} was lost: {one_line(str(error))[:200]}"
