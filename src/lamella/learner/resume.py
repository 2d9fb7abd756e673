"""Where a learning into a model's folder goes on after a kill, and what is done with one that was interrupted.

MODEL/learning/what.json    what is learned into which version; written before anything is trained
MODEL/learning/task-K/      checkpoints of its calls (training/checkpoints.py)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.common.files import read_json, refuse_links, write_json
from lamella.data.images import content_sha256, data_sha256
from lamella.data.scenario import Task
from lamella.learner.config.document import up_to_date
from lamella.learner.config.own_methods import method_digests
from lamella.learner.model import Model
from lamella.learner.store.versions import VERSIONS, holds_model, load_manifest
from lamella.training.checkpoints import Checkpoints

__all__ = ["PLACE", "Resumed", "config_left", "current_version", "is_free", "resume"]

PLACE = "learning"
"""The folder within a model where an interrupted learning is kept."""
NOTE = "what.json"
CHANGES = {
    "images": "it had other {noun}s",
    "content": "the content of its {noun}s has changed",
    "config": "its backbone, method or settings were others",
    "method_files": "the file of its method has changed",
    "version": "the model is another version now",
    "task": "it had another name",
}
"""What must be alike for a learning to go on, and what is said where it is not."""


@dataclass(frozen=True)
class Resumed:
    """What was found where a learning goes on.

    Attributes:
        checkpoints: where its calls are kept.
        goes_on: whether an interrupted learning of the same samples goes on.
        stored: whether that learning had ended and was stored already, so that nothing is left to do.
        given_up: the name of another task whose interrupted learning was given up, and why; empty where there was none.
    """

    checkpoints: Checkpoints
    goes_on: bool = False
    stored: bool = False
    given_up: str = ""


def resume(folder: Path, place: Path, model: Model, task: Task) -> Resumed:
    """Prepare the place of a learning, with what an interrupted one of the same samples left there.

    Args:
        folder: of the model.
        place: where the learning is kept, such as `folder / PLACE`.
        model: as it is before the learning.
        task: that is learned.

    Raises:
        ValueError: a place that the learning would write to or clear is a symbolic link.
    """
    refuse_links(folder / VERSIONS)  # before hours of training want to be stored there
    checkpoints = Checkpoints(place, float(model.config["fit"]["checkpoint_seconds"]))
    what = _what(folder, model, task)
    left = _left(place) or _left_by_a_first_server(folder, place, what)
    if not left and place.exists():
        # A kill while the place was cleared may have left checkpoints of other samples.
        checkpoints.clear()
    if left and _was_stored(left, what, model):
        checkpoints.clear()
        return Resumed(checkpoints, stored=True)
    reasons = [said for key, said in CHANGES.items() if left and left.get(key) != what.get(key)]
    changed = [reason.format(noun=task.train.noun) for reason in reasons]
    if changed:
        checkpoints.clear()
    goes_on = not changed and any(place.glob("task-*"))
    write_json(place / NOTE, what)
    return Resumed(checkpoints, goes_on, given_up=f"{left.get('task')}: {changed[0]}" if changed else "")


def config_left(folder: Path) -> dict[str, Any]:
    """The configuration that an interrupted first learning left in a model's folder; empty where there is none."""
    return _left(folder / PLACE).get("config", {})


def is_free(folder: Path) -> bool:
    """Whether a new model can be made here: nothing is there but what an interrupted first learning has left."""
    if not folder.is_dir():
        return not folder.exists()
    what = folder / PLACE / NOTE
    first = what.exists() and read_json(what).get("version") == 0
    # Without that file, versions are those of a model that lost its pointer, and may be wanted.
    stored = ("versions", "state-*.safetensors", "backbone-*.safetensors") if first else ()
    return all(any(path.match(own) for own in (".lock", ".*.part", PLACE, *stored)) for path in folder.iterdir())


def current_version(folder: Path) -> int:
    """The number of the current version; 0 where there is no model yet."""
    return int(load_manifest(folder)["version"]) if holds_model(folder) else 0


def _was_stored(left: dict[str, Any], what: dict[str, Any], model: Model) -> bool:
    """Whether the interrupted learning made the version that is the current one."""
    newest = model.tasks[-1].data_sha256 if model.tasks else None
    same = all(left.get(key) == what[key] for key in ("images", "content"))
    one_more = left.get("tasks") == what["tasks"] - 1 and left.get("version", 0) < what["version"]
    return same and one_more and newest == what["images"]


def _left(place: Path) -> dict[str, Any]:
    """What an interrupted learning wrote down, also one of a version with fewer options; empty where there is none."""
    path = place / NOTE
    left = read_json(path) if path.exists() else {}
    return {**left, "config": up_to_date(left["config"])} if "config" in left else left


def _left_by_a_first_server(folder: Path, place: Path, what: dict[str, Any]) -> dict[str, Any]:
    """What the server of lamella 0.1.0 left: the checksum of the version that it began with, and no more."""
    path = place / "model.json"
    if not path.exists() or not holds_model(folder):
        return {}
    return what if read_json(path) == load_manifest(folder)["state"]["sha256"] else {}


def _what(folder: Path, model: Model, task: Task) -> dict[str, Any]:
    names = dict(zip(task.classes, task.class_names, strict=True))
    return {
        "task": task.name,
        "version": current_version(folder),
        "tasks": len(model.tasks),
        "config": model.config,
        **({"method_files": files} if (files := method_digests(model.config)) else {}),
        "images": data_sha256(task.train, names),
        "content": content_sha256(task.train),
    }
