"""A learner as a version of a model folder, and back."""

from pathlib import Path
from typing import TYPE_CHECKING

from lamella.common.version import __version__
from lamella.learner.config.document import up_to_date
from lamella.learner.store.kept_backbone import from_copy, keep_backbone
from lamella.learner.store.state import learned_state, restore_state
from lamella.learner.store.versions import load_model, save_model

if TYPE_CHECKING:
    from lamella.learner.learner import Learner

__all__ = ["load_learner", "save_learner"]


def save_learner(learner: "Learner", folder: Path, *, what: str, keep: int | None) -> int:
    """Arguments and return value are those of `Learner.save`."""
    kept = keep_backbone(folder, from_copy(learner.config, learner.backbone_copy), learner.backbone)
    manifest = {
        "written_by": __version__, "config": learner.config, "weights_sha256": learner.backbone.weights_sha256,
        "backbone_copy": kept,
        "class_names": [[i, name] for i, name in learner.class_names.items()],
        "tasks": learner.tasks, "notes": learner.notes,
    }  # fmt: skip
    return save_model(folder, learned_state(learner.method), manifest, what=what, keep=keep)


def load_learner(kind: "type[Learner]", folder: Path, version: int | None) -> "Learner":
    """A learner of this class; arguments and errors are those of `Learner.load`."""
    state, manifest = load_model(folder, version)
    copy = manifest.get("backbone_copy")
    learner = kind(up_to_date(manifest["config"]), backbone_copy=folder / copy if copy else None)
    if learner.backbone.weights_sha256 != manifest["weights_sha256"]:
        raise ValueError(
            f"'{folder}' was learned on other weights of {learner.backbone.name} than the ones found here; "
            "put the original weights back"
        )
    restore_state(learner.method, state)
    learner.class_names = {int(i): str(name) for i, name in manifest["class_names"]}
    learner.tasks, learner.notes = manifest["tasks"], manifest["notes"]
    return learner
