"""Resumes an interrupted learning into a model's folder, or discards it if it does not match.

MODEL/learning/what.json    the description: which task is learned into which version; written before training starts
MODEL/learning/task-K/      the checkpoints of its calls (training/checkpoints.py)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.common.files import read_json, refuse_links, write_json
from lamella.data.images import content_sha256, data_sha256
from lamella.data.scenario import Task
from lamella.learner.config.document import on_device, up_to_date
from lamella.learner.config.own_methods import method_digests
from lamella.learner.model import Model
from lamella.learner.store.versions import VERSIONS, holds_model, load_manifest
from lamella.training.checkpoints import Checkpoints

__all__ = ["PLACE", "Resumed", "config_left", "current_version", "is_free", "resume", "stored_before"]

PLACE = "learning"
"""The folder within a model that holds the checkpoints of a learning."""
NOTE = "what.json"
CHANGES = {
    "version": "the model is another version now",
    "images": "it had other {noun}s",
    "content": "the content of its {noun}s has changed",
    "config": "its backbone, method or settings were others",
    "method_files": "the file of its method has changed",
    "task": "it had another name",
}
"""What must be equal for a learning to be resumed, and the reason that is shown if it is not; the first one counts."""


@dataclass(frozen=True)
class Resumed:
    """What an interrupted learning has left.

    Attributes:
        checkpoints: where the training calls save their state.
        goes_on: whether an interrupted learning of the same samples is resumed.
        stored: whether that learning had been completed and stored already, so that nothing is left to do.
        given_up: "TASK: REASON" for an interrupted learning that was discarded; empty if there was none.
    """

    checkpoints: Checkpoints
    goes_on: bool = False
    stored: bool = False
    given_up: str = ""


def resume(folder: Path, place: Path, model: Model, task: Task) -> Resumed:
    """Prepare the folder of a learning. Keep what an interrupted learning of the same samples has left there.

    Args:
        folder: the model's folder.
        place: the folder of the learning, such as `folder / PLACE`.
        model: the model before the learning.
        task: the task to learn.

    Raises:
        ValueError: a folder that the learning would write to or clear is a symbolic link.
    """
    refuse_links(folder / VERSIONS)  # checked now, because the result of hours of training is stored there later
    checkpoints = Checkpoints(place, float(model.config["fit"]["checkpoint_seconds"]))
    what = _what(folder, model, task)
    left = _left(place) or _left_by_a_first_server(folder, place, what)
    if not left and place.exists():
        # A process that was killed while clearing the folder may have left checkpoints of other samples.
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


def stored_before(folder: Path, place: Path, model: Model) -> bool:
    """Whether the newest task is that of a learning that was interrupted after it had been stored.

    Arguments are those of `resume`. If so, what it has left is deleted.
    """
    left, newest = _left(place), model.tasks[-1] if model.tasks else None
    if newest is None or not left:
        return False
    one_more = left.get("tasks") == len(model.tasks) - 1 and left.get("version", 0) < current_version(folder)
    stored = one_more and left.get("images") == newest.data_sha256
    if stored:
        Checkpoints(place, float(model.config["fit"]["checkpoint_seconds"])).clear()
    return stored


def config_left(folder: Path) -> dict[str, Any]:
    """Return the configuration that an interrupted first learning left in a model's folder; empty if there is none."""
    return _left(folder / PLACE).get("config", {})


def is_free(folder: Path) -> bool:
    """Whether a new model can be created here: the folder is missing, empty, or from an interrupted first learning."""
    if not folder.is_dir():
        return not folder.exists()
    what = folder / PLACE / NOTE
    first = what.exists() and read_json(what).get("version") == 0
    # Without that description, the versions may belong to a model that lost its pointer, so they are kept.
    stored = ("versions", "state-*.safetensors", "backbone-*.safetensors") if first else ()
    return all(any(path.match(own) for own in (".lock", ".*.part", PLACE, *stored)) for path in folder.iterdir())


def current_version(folder: Path) -> int:
    """Return the number of the current version; 0 if there is no model yet."""
    return int(load_manifest(folder)["version"]) if holds_model(folder) else 0


def _was_stored(left: dict[str, Any], what: dict[str, Any], model: Model) -> bool:
    """Whether the interrupted learning had already stored the current version."""
    newest = model.tasks[-1].data_sha256 if model.tasks else None
    same = all(left.get(key) == what[key] for key in ("images", "content"))
    one_more = left.get("tasks") == what["tasks"] - 1 and left.get("version", 0) < what["version"]
    return same and one_more and newest == what["images"]


def _left(place: Path) -> dict[str, Any]:
    """Read the description of an interrupted learning, with options added since; empty if there is none."""
    path = place / NOTE
    left = read_json(path) if path.exists() else {}
    if not isinstance(left, dict) or ("config" in left and not isinstance(left["config"], dict)):
        raise ValueError(f"'{path}' was not written by lamella; remove the folder '{place}'")
    return {**left, "config": on_device(up_to_date(left["config"]), None)} if "config" in left else left


def _left_by_a_first_server(folder: Path, place: Path, what: dict[str, Any]) -> dict[str, Any]:
    """Read what the server of lamella 0.1.0 has left, which is only the checksum of the version it started from."""
    path = place / "model.json"
    if not path.exists() or not holds_model(folder):
        return {}
    return what if read_json(path) == load_manifest(folder)["state"]["sha256"] else {}


def _what(folder: Path, model: Model, task: Task) -> dict[str, Any]:
    """Describe a learning."""
    names = dict(zip(task.classes, task.class_names, strict=True))
    return {
        "task": task.name,
        "version": current_version(folder),
        "tasks": len(model.tasks),
        "config": on_device(model.config, None),
        **({"method_files": files} if (files := method_digests(model.config)) else {}),
        "images": data_sha256(task.train, names),
        "content": content_sha256(task.train),
    }
