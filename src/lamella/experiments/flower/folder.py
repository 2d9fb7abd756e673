"""The folder of an app that `flwr run` takes."""

from collections.abc import Sequence
from pathlib import Path

from lamella.common.files import write_atomic

__all__ = ["write_app"]


def write_app(folder: Path, config: str, overrides: Sequence[str], out: Path, *, timeout: float = 600.0) -> None:
    """Write the folder of a Flower app that learns a configuration.

    Args:
        folder: the new folder.
        config: a shipped configuration, or the path of one that all nodes can read.
        overrides: changes of it, without spaces.
        out: the run directory, on the server.
        timeout: for how many seconds the server waits for the answers of nodes; above 0.

    Raises:
        FileExistsError: there is something in the folder.
        ValueError: an override has a space.
    """
    import tomli_w

    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"'{folder}' is not empty; choose another folder for the app")
    if spaced := [text for text in overrides if " " in text]:
        raise ValueError(
            f"the change '{spaced[0]}' has a space, which Flower's configuration does not take; leave it out"
        )
    apps = "lamella.experiments.flower.apps"
    document = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {"name": "lamella-federated", "version": "1.0.0", "license": "Apache-2.0", "dependencies": []},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "lamella",
                    "components": {"serverapp": f"{apps}:server", "clientapp": f"{apps}:client"},
                    "config": {
                        "config": config,
                        "overrides": " ".join(overrides),
                        "out": str(out.absolute()),
                        "timeout": timeout,
                    },
                }
            }
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "pyproject.toml", tomli_w.dumps(document).encode())
