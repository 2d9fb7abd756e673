"""Engines by name: where the trials of a sweep run."""

from collections.abc import Sequence
from typing import Any

from lamella.common.checks import check_one_of
from lamella.experiments.sweep.local import Processes
from lamella.experiments.sweep.sweep import Engine
from lamella.learner.config.overrides import parse_value

__all__ = ["ENGINES", "check_engine", "engine"]

ENGINES = ("local", "ray", "slurm")


def engine(name: str, number: int = 1, address: str | None = None, resources: Sequence[str] = ()) -> Engine:
    """Return an engine.

    Args:
        name: "local" (processes on this machine), "ray" or "slurm".
        number: the trials at a time; on a Ray cluster its resources decide.
        address: that of a Ray cluster; None for one on this machine, which ends with the sweep.
        resources: what a trial asks for, as texts KEY=VALUE: of Ray `num_cpus`, `num_gpus` or `memory`; of SLURM
            `timeout_min`, `gpus_per_node`, `slurm_partition` and others that submitit knows.

    Raises:
        ValueError: there is no such engine, or it takes no address or no resources.
        ModuleNotFoundError: the library of the engine is not installed.
        FileNotFoundError: jobs of SLURM cannot be submitted from this machine.
    """
    asked = check_engine(name, ENGINES, address, resources, "say how many run at a time by --processes")
    if name == "ray":
        from lamella.experiments.sweep.on_ray import RayTasks

        return RayTasks(address, number, asked)
    if name == "slurm":
        from lamella.experiments.sweep.on_slurm import SlurmJobs

        return SlurmJobs(number, asked)
    return Processes(number)


def check_engine(
    name: str, known: Sequence[str], address: str | None, resources: Sequence[str], instead: str
) -> dict[str, Any]:
    """Check the options that choose an engine, and return what each piece of work asks for.

    Args:
        name: the engine.
        known: the engines that there are.
        address: that of a Ray cluster, or None.
        resources: texts KEY=VALUE.
        instead: what to do in place of `--resource` with engine "local".

    Raises:
        ValueError: there is no such engine, or it takes no address or no resources.
    """
    check_one_of("engine", name, known)
    asked = dict(map(_resource, resources))
    if address is not None and name != "ray":
        raise ValueError(f"--address is that of a Ray cluster; engine '{name}' has none, so leave it out")
    if asked and name == "local":
        raise ValueError(f"engine 'local' takes no --resource; {instead}")
    return asked


def _resource(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier() and value):
        raise ValueError(f"--resource {text} is no KEY=VALUE; write it as in --resource num_gpus=1")
    return key, parse_value(value)
