"""Copies a backbone from the user's own files into the model's folder, so that the folder is self-contained.

    MODEL/backbone-<checksum>.safetensors   the weights as they were loaded, with a LoRA that was added to them; of an
                                            encoder of texts also its configuration, tokenizer and pooling

All versions share one copy. Two kinds of weights are not copied: those that can be loaded again by name (bundled, from
timm's hub, or under $LAMELLA_DATA), and random ones, which the seed draws again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella.backbones import Backbone, backbone_options
from lamella.backbones.encoder_copies import copy_of, is_kept_encoder
from lamella.backbones.encoder_places import is_path
from lamella.common.files import write_tensors
from lamella.learner.config.document import build_backbone

__all__ = ["from_copy", "keep_backbone", "without_weights"]


def keep_backbone(folder: Path, config: Mapping[str, Any], backbone: Backbone) -> str | None:
    """Copy the backbone into the model's folder if it needs a copy and has none yet.

    Args:
        folder: the model's folder.
        config: the complete configuration.
        backbone: the backbone of the model.

    Returns:
        The name of the copy within `folder`; None if no copy is needed.

    Raises:
        FileNotFoundError: the original files are missing.
        ValueError: the original files have changed since the backbone was loaded.
    """
    table = config["backbone"]
    by_name = table.get("weights", "pretrained") in ("pretrained", "random") and not is_path(table["name"])
    if by_name and "adapter" not in table:
        return None
    name = f"backbone-{backbone.weights_sha256[:16]}.safetensors"
    if not (folder / name).is_file():
        original = build_backbone(config)  # learning may have changed the weights of `backbone`
        if original.weights_sha256 != backbone.weights_sha256:
            raise ValueError(
                f"the files of backbone '{backbone.name}' ({_files(table)}) changed since they were loaded, so they "
                "cannot be kept with the model; put the original ones back"
            )
        if table.get("storage", "float32") != "float32":  # the copy is in float
            plain = {key: value for key, value in table.items() if key != "storage"}
            original = build_backbone({**config, "backbone": plain})
        write_tensors(folder / name, *copy_of(original))
    return name


def from_copy(config: Mapping[str, Any], copy: Path | None) -> dict[str, Any]:
    """Return a configuration that loads the backbone from its copy instead of the original files.

    Args:
        config: the complete configuration.
        copy: the file of the copy; None if there is none, which returns `config` unchanged.

    Raises:
        FileNotFoundError: the copy is missing.
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


def without_weights(config: Mapping[str, Any], copy: Path | None = None) -> dict[str, Any]:
    """Return a configuration whose backbone has the same shape and random weights; its predictions mean nothing.

    An encoder of texts has the weights of its copy, which alone says of which shape it is.

    Args:
        config: the complete configuration.
        copy: the file of the copy; None if there is none.
    """
    if copy is not None and is_kept_encoder(str(copy)):
        return from_copy(config, copy)
    if "weights" not in backbone_options(config["backbone"]):
        return dict(config)
    table = {key: value for key, value in config["backbone"].items() if key != "adapter"}
    return {**config, "backbone": {**table, "weights": "random"}}


def _files(table: Mapping[str, Any]) -> str:
    named = {"name": table["name"]} if is_path(table["name"]) else {}
    given = {key: table[key] for key in ("weights", "adapter") if key in table}
    return " and ".join(str(place) for place in (named | given).values() if place not in ("pretrained", "random"))
