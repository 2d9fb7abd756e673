"""Ray, which is imported where an engine runs on it, and a cluster of it that is started or found."""

import logging
import math
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

__all__ = ["check_resources", "cluster", "import_ray"]

RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
"""What may be asked for, and what the nodes of a cluster call it."""
LONGEST = 25
"""Longest path of the temporary folder of the machine; Ray adds about 80 characters to it for its sockets, whose paths
have at most 103 on macOS and 107 on Linux."""
TIMEOUT = 10
"""Seconds in which a cluster that is named by its address has to take a connection."""


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


def check_resources(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one piece of work asks for: a core where `num_cpus` is not among the resources.

    >>> check_resources({"num_gpus": 0.5})
    {'num_cpus': 1, 'num_gpus': 0.5}

    Raises:
        ValueError: a resource is not one of `RESOURCES`, no such amount can be had, or neither a core nor a GPU is
            asked for.
    """
    for name, amount in resources.items():
        if name not in RESOURCES:
            known = ", ".join(RESOURCES)
            raise ValueError(f"--resource {name}={amount} is none that engine 'ray' takes; use one of {known}")
        number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not (number and 0 <= amount < math.inf):
            raise ValueError(f"--resource {name}={amount} should be a number from 0 on; memory is in bytes")
        if name == "num_gpus" and amount > 1 and amount % 1:
            raise ValueError(
                f"--resource num_gpus={amount} should be a whole number, or a share of one GPU such as 0.5"
            )
    asked = {"num_cpus": 1, **resources}
    if not asked["num_cpus"] and not asked.get("num_gpus"):
        raise ValueError(
            "--resource num_cpus=0 without a GPU would start everything at once; give num_cpus or num_gpus above 0"
        )
    return asked


@contextmanager
def cluster(ray: Any, address: str | None, asked: Mapping[str, Any], number: int | None) -> Iterator[None]:
    """Be connected to a cluster; what still runs on it for this process ends with the context.

    Args:
        ray: the module.
        address: that of a cluster, such as "auto"; None starts one on this machine, which ends with the context.
        asked: what one piece of work asks for, see `check_resources`.
        number: the pieces at a time that a cluster that is started has cores for; None for the cores of the machine.

    Raises:
        ValueError: nothing answers at the address, or no node of the cluster has what is asked for.
    """
    if address:
        _check_address(address)
    with ExitStack() as stack:
        here: dict[str, Any] = {}
        if not address:
            # Ray takes whole numbers of cores only.
            cores = None if number is None else max(1, math.ceil(number * asked["num_cpus"]))
            here = {"num_cpus": cores, "include_dashboard": False, "_temp_dir": stack.enter_context(_folder())}
        stack.callback(ray.shutdown)  # also of what an `init` that fails has started
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
        _check_room(ray.nodes(), asked)
        yield


def _check_address(address: str) -> None:
    """Raise ValueError where no machine takes a connection at an address: Ray would try again for minutes."""
    scheme, _, place = address.rpartition("://")
    if address in ("auto", "local") or scheme not in ("", "ray"):  # other schemes belong to packages beside Ray
        return
    host, _, port = place.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise ValueError(f"--address {address} is no address of Ray; give auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except OSError as error:
        raise ValueError(
            f"--address {address}: no cluster answers there ({error.strerror or error}); start one with 'ray "
            "start --head', or leave --address out for one on this machine"
        ) from error


def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the logs and sockets of a cluster that is started, which Ray itself would leave behind."""
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(place) > LONGEST and os.name == "posix":
        place = "/tmp"
    return tempfile.TemporaryDirectory(prefix="ray-", dir=place, ignore_cleanup_errors=True)


def _check_room(nodes: list[dict[str, Any]], asked: Mapping[str, Any]) -> None:
    """Raise ValueError where no node has all that is asked for: Ray would wait for one without a word."""
    have = [
        {name: node["Resources"].get(key, 0) for name, key in RESOURCES.items() if name in asked}
        for node in nodes
        if node["Alive"]
    ]
    if any(all(node[name] >= amount for name, amount in asked.items()) for node in have):
        return
    seen = " or ".join(dict.fromkeys(map(_written, have))) or "nothing"
    raise ValueError(
        f"each process asks for {_written(asked)}, and no machine of Ray has that: they have {seen}; ask for less by "
        "--resource, or start Ray on a machine that has it"
    )


def _written(amounts: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={amount:.15g}" for name, amount in amounts.items())
