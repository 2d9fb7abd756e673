"""Ray, which is imported where an engine runs on it, and a cluster of it that is started or found."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

__all__ = ["cluster", "import_ray", "shares"]


def import_ray(*modules: str) -> Any:
    """Import Ray, which then tells nothing to anyone unless the user has asked it to.

    Args:
        modules: further modules of Ray, such as "data".

    Raises:
        ModuleNotFoundError: Ray, or what one of its modules needs, is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        for name in modules:
            import_module(f"ray.{name}")
        return import_module("ray")
    except ImportError as error:
        raise ModuleNotFoundError("engine 'ray' needs Ray: pip install 'lamella[ray]'") from error


def shares(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one piece of work asks for: a core where `num_cpus` is not among the resources."""
    return {"num_cpus": 1, **resources}


@contextmanager
def cluster(ray: Any, address: str | None, cpus: float | None) -> Iterator[None]:
    """Be connected to a cluster; what still runs on it for this process ends with the context.

    Args:
        ray: the module.
        address: that of a cluster, such as "auto"; None starts one on this machine, which ends with the context.
        cpus: the cores of the cluster that is started; None for those of the machine.
    """
    here: dict[str, Any] = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    try:
        yield
    finally:
        ray.shutdown()
