"""A learning that is under way in a model's folder, and what to do with one that was interrupted."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lamella.cli.output import say

if TYPE_CHECKING:
    from lamella.data.scenario import Task
    from lamella.learner.learner import Learner
    from lamella.training.checkpoints import Checkpoints

__all__ = ["UNDER_WAY", "UnderWay", "config_under_way", "current_version", "is_free", "under_way"]

UNDER_WAY = "learning"
"""The folder within a model that holds it."""
CHANGES = {
    "images": "it had other images", "content": "the content of its images has changed",
    "config": "its backbone, method or settings were others", "version": "the model is another version now",
    "task": "it had another name",
}  # fmt: skip
"""What must be alike for a learning to go on, and what is said where it is not."""


class UnderWay(NamedTuple):
    """Where a learning is filed, and whether it goes on from where an interrupted one stopped."""

    checkpoints: "Checkpoints"
    goes_on: bool


def under_way(model: Path, learner: "Learner", task: "Task") -> UnderWay | None:
    """Where this learning can go on after a kill, with what an interrupted one of the same images left there.

    Returns:
        None where that one was killed after its model was stored: then nothing is left to do.
    """
    from lamella.common.files import write_json
    from lamella.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(model / UNDER_WAY, float(learner.config["fit"]["checkpoint_seconds"]))
    path, what = checkpoints.folder / "what.json", _what(model, learner, task)
    left = _left(path) if path.exists() else {}
    if (
        not left and checkpoints.folder.exists()
    ):  # a kill while it was cleared may have left checkpoints, of whatever images
        checkpoints.clear()
    if left and _was_stored(left, what, learner):
        checkpoints.clear()
        say(f"{task.name} had been learned and stored already when its learning was interrupted")
        return None
    changed = [said for key, said in CHANGES.items() if left and left.get(key) != what[key]]
    if changed:
        checkpoints.clear()
        say(f"gives up the interrupted learning of {left.get('task')} and starts anew: {changed[0]}")
    goes_on = not changed and any(checkpoints.folder.glob("task-*"))
    if goes_on:
        say(f"goes on with the learning of {task.name} that was interrupted")
    write_json(path, what)
    return UnderWay(checkpoints, goes_on)


def config_under_way(model: Path) -> dict[str, Any]:
    """The configuration that an interrupted learning left here; empty where there is none."""
    path = model / UNDER_WAY / "what.json"
    return _left(path).get("config", {}) if path.exists() else {}


def is_free(model: Path) -> bool:
    """Whether a new model can be made here: nothing is there but what an interrupted first learning has left."""
    from lamella.common.files import read_json

    if not model.is_dir():
        return not model.exists()
    what = model / UNDER_WAY / "what.json"
    first = what.exists() and read_json(what).get("version") == 0
    # Without that file, versions are those of a model that lost its pointer, and may be wanted.
    stored = ("versions", "state-*.safetensors", "backbone-*.safetensors") if first else ()
    return all(any(path.match(own) for own in (".lock", ".*.part", UNDER_WAY, *stored)) for path in model.iterdir())


def current_version(model: Path) -> int:
    """The number of the current version; 0 where there is no model yet."""
    from lamella.learner.store.versions import holds_model, load_manifest

    return int(load_manifest(model)["version"]) if holds_model(model) else 0


def _was_stored(left: dict[str, Any], what: dict[str, Any], learner: "Learner") -> bool:
    """Whether the interrupted learning made the version that is the current one."""
    newest = learner.tasks[-1].get("data_sha256") if learner.tasks else None
    same = all(left.get(key) == what[key] for key in ("images", "content"))
    one_more = left.get("tasks") == what["tasks"] - 1 and left.get("version", 0) < what["version"]
    return same and one_more and newest == what["images"]


def _left(path: Path) -> dict[str, Any]:
    """What an interrupted learning wrote down, also one of a version with fewer options."""
    from lamella.common.files import read_json
    from lamella.learner.config.document import up_to_date

    left = read_json(path)
    return {**left, "config": up_to_date(left["config"])} if "config" in left else left


def _what(model: Path, learner: "Learner", task: "Task") -> dict[str, Any]:
    from lamella.data.images import ImageSet, content_sha256, data_sha256

    names = dict(zip(task.classes, task.class_names, strict=True))
    content = content_sha256(task.train) if isinstance(task.train, ImageSet) else ""
    return {
        "task": task.name, "version": current_version(model), "tasks": len(learner.tasks),
        "config": learner.config, "images": data_sha256(task.train, names), "content": content,
    }  # fmt: skip
