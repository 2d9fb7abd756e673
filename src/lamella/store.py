"""A model on disk: safetensors and JSON only, whole at every moment.

    MODEL/lamella.json                  configuration, class names, ledger of tasks, the state file and its checksum
    MODEL/state-<checksum>.safetensors  what was learned: all tensors but those of the backbone still as loaded

The state file is written first and never changed; replacing `lamella.json` is the one step that makes it the model.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.files import read_json, read_tensors, tensors_to_bytes, write_atomic, write_json

__all__ = ["FORMAT", "MANIFEST", "learned_state", "load_model", "restore_state", "save_model"]

FORMAT = 1
MANIFEST = "lamella.json"


def learned_state(method: nn.Module) -> dict[str, Tensor]:
    """The method's tensors, less those of its backbone that are still as loaded."""
    state = dict(method.state_dict())
    for prefix, module in method.named_modules():
        if isinstance(module, Backbone):
            changed = module.changed()
            for key in [k for k in module.model.state_dict() if k not in changed]:
                state.pop(f"{prefix}.model.{key}", None)
    return state


def restore_state(method: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `learned_state` into a freshly built method; what it left out stays as loaded.

    Raises:
        ValueError: the state belongs to another method or backbone.
    """
    full = dict(state)
    for prefix, module in method.named_modules():
        if isinstance(module, Backbone):
            loaded = {f"{prefix}.model.{k}": v for k, v in module.model.state_dict().items() if ".branches." not in k}
            full = loaded | full
    try:
        method.load_state_dict(full)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise ValueError(f"the stored state does not fit this method ({lines[-1].strip()})") from error


def save_model(folder: Path, state: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> int:
    """Make `state` and `manifest` the model at `folder`; returns the bytes of the state file.

    Raises:
        OSError: the folder cannot be written or the disk is full; the model that was there is untouched.
    """
    content = tensors_to_bytes(state)
    checksum = sha256(content).hexdigest()
    file = folder / f"state-{checksum[:16]}.safetensors"
    if not file.exists():
        write_atomic(file, content)
    state_entry = {"file": file.name, "sha256": checksum, "bytes": len(content)}
    write_json(folder / MANIFEST, {"lamella": FORMAT, **manifest, "state": state_entry})
    for old in folder.glob("state-*.safetensors"):
        if old != file:
            old.unlink(missing_ok=True)
    return len(content)


def load_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and manifest of the model at `folder`.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: it is damaged, foreign, or written by a newer version.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"'{folder}' holds no model (no {MANIFEST}); `lamella learn` makes one")
    manifest = read_json(path)
    version = manifest.get("lamella") if isinstance(manifest, dict) else None
    if not isinstance(version, int) or not {"state", "config"} <= set(manifest):
        raise ValueError(f"'{path}' was not written by lamella")
    if version > FORMAT:
        raise ValueError(f"'{path}' has format {version}, this lamella reads up to {FORMAT}; upgrade lamella")
    entry = manifest["state"]
    state, _ = read_tensors(folder / entry["file"], entry["sha256"])
    return state, manifest
