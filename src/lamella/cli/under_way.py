"""A learning that is under way in a model's folder, and what to do with one that was interrupted."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from lamella.checkpoints import Checkpoints
    from lamella.data.scenario import Task
    from lamella.learner import Learner

__all__ = ["UNDER_WAY", "current_version", "under_way"]

UNDER_WAY = "learning"
"""The folder within a model that holds it."""


def under_way(model: Path, learner: "Learner", task: "Task") -> "Checkpoints | None":
    """Where this learning can go on after a kill, with what an interrupted one of the same images left there.

    Returns:
        None where that one was killed after its model was stored: then nothing is left to do.
    """
    from lamella.checkpoints import Checkpoints
    from lamella.files import read_json, write_json

    checkpoints = Checkpoints(model / UNDER_WAY, float(learner.config["fit"]["checkpoint_seconds"]))
    path, what = checkpoints.folder / "what.json", _what(model, learner, task)
    left = read_json(path) if path.exists() else None
    if left and left["images"] == what["images"] and left["version"] < what["version"]:
        checkpoints.clear()
        typer.echo(f"{task.name} had been learned and stored already when its learning was interrupted")
        return None
    if left == what:
        typer.echo(f"goes on with the learning of {task.name} that was interrupted")
    elif left:
        checkpoints.clear()
        typer.echo(f"gives up the interrupted learning of {left['task']}: its images, settings or model were others")
    write_json(path, what)
    return checkpoints


def current_version(model: Path) -> int:
    """The number of the current version; 0 where there is no model yet."""
    from lamella.store import holds_model, load_manifest

    return int(load_manifest(model)["version"]) if holds_model(model) else 0


def _what(model: Path, learner: "Learner", task: "Task") -> dict[str, Any]:
    """What must be alike for a learning to go on."""
    from lamella.data.images import data_sha256

    return {
        "task": task.name, "version": current_version(model), "config": learner.config,
        "images": data_sha256(task.train, dict(zip(task.classes, task.class_names, strict=True))),
    }  # fmt: skip
