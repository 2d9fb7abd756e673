"""A backbone from a file of the user's own is copied into the model's folder, so that the folder stands alone.

    MODEL/backbone-<checksum>.safetensors   its weights as they were loaded, with a LoRA that was added to them

One copy serves all versions. Weights that anyone can have again by name (the bundled ones, timm's hub, those under
$LAMELLA_DATA) and random ones, which a seed draws again, are not copied.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella.backbones import Backbone
from lamella.common.files import write_tensors
from lamella.learner.config.document import build_backbone

__all__ = ["from_copy", "keep_backbone"]


def keep_backbone(folder: Path, config: Mapping[str, Any], backbone: Backbone) -> str | None:
    """The name of the copy within `folder`, which is made where there is none; None where none is needed.

    Raises:
        FileNotFoundError: the original is not there any more. ValueError: it is another one than was loaded.
    """
    table = config["backbone"]
    if table.get("weights", "pretrained") in ("pretrained", "random") and "adapter" not in table:
        return None
    name = f"backbone-{backbone.weights_sha256[:16]}.safetensors"
    if not (folder / name).is_file():
        original = build_backbone(config)  # learning may have changed the one at hand
        if original.weights_sha256 != backbone.weights_sha256:
            raise ValueError(
                f"the files of backbone '{backbone.name}' ({_files(table)}) changed since they were loaded, so they "
                "cannot be kept with the model; put the original ones back"
            )
        write_tensors(folder / name, original.model.state_dict())
    return name


def from_copy(config: Mapping[str, Any], copy: Path | None) -> dict[str, Any]:
    """The configuration with a kept copy in the place of the files it was made of.

    Raises:
        FileNotFoundError: the copy is not there.
    """
    if copy is None:
        return dict(config)
    if not copy.is_file():
        raise FileNotFoundError(
            f"'{copy}' is missing, the backbone that this model was learned on ({_files(config['backbone'])}); restore "
            "it from a copy"
        )
    table = {key: value for key, value in config["backbone"].items() if key != "adapter"}
    return {**config, "backbone": {**table, "weights": str(copy)}}


def _files(table: Mapping[str, Any]) -> str:
    return " and ".join(str(table[key]) for key in ("weights", "adapter") if key in table)
