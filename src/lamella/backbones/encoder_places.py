"""Where an encoder of texts lies: a folder by its path, a folder below $LAMELLA_DATA, or the cache of the hub."""

import os
import re
from pathlib import Path
from typing import Any

from lamella.backbones.encoder_hub import folder_of_hub
from lamella.common.files import read_json

__all__ = ["encoder_folder", "folder_below_data", "holds_encoder", "is_called_as_encoder", "is_path", "network_folder"]

OF_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")
PLAIN = re.compile(r"\w[\w.+-]*")


def is_path(name: str) -> bool:
    """Whether a name is the path of a folder: absolute, beginning with a dot or "~", or in several folders.

    >>> is_path("/models/mine"), is_path("./mine"), is_path("owner/name")
    (True, True, False)
    """
    parted = "/" in name and not OF_HUB.fullmatch(name)
    return parted or Path(name).is_absolute() or name.startswith((".", "~")) or "\\" in name


def is_called_as_encoder(name: str) -> bool:
    """Whether a name can be that of an encoder only: owner/name of the hub, or a path."""
    return "/" in name or is_path(name)


def holds_encoder(folder: Path) -> bool:
    """Whether a folder is one of transformers or sentence-transformers. A folder of timm is not."""
    if (folder / "modules.json").is_file():
        return True
    path = folder / "config.json"
    try:
        config = read_json(path) if path.is_file() else None
    except ValueError:
        return False
    return isinstance(config, dict) and isinstance(config.get("model_type"), str) and "architecture" not in config


def folder_below_data(name: str) -> Path | None:
    """The folder of this name below $LAMELLA_DATA, if there is one."""
    root = os.environ.get("LAMELLA_DATA")
    known = PLAIN.fullmatch(name) or OF_HUB.fullmatch(name)
    folder = Path(root, name) if root and known else None
    return folder if folder is not None and folder.is_dir() else None


def encoder_folder(name: str, *, weights: bool = True) -> Path:
    """Find the folder of an encoder, or fetch it from the hub.

    Args:
        name: the path of a folder, owner/name of the hub, or the name of a folder below $LAMELLA_DATA.
        weights: whether the weights are needed, too.

    Raises:
        FileNotFoundError: there is no such folder.
        WeightsNotFound: the hub does not have it, cannot be reached, or must not be asked.
        ValueError: the name is none, or the folder holds no encoder.
    """
    if is_path(name):
        found = Path(name).expanduser()
        if not found.is_dir():
            raise FileNotFoundError(f"there is no folder '{name}'; give the folder of an encoder, or its owner/name")
    elif (below := folder_below_data(name)) is not None and holds_encoder(below):
        found = below
    elif OF_HUB.fullmatch(name):
        found = folder_of_hub(name, weights=weights)
    else:
        raise ValueError(f"'{name}' names no encoder: neither owner/name of the hub, nor a folder below $LAMELLA_DATA")
    if not holds_encoder(found):
        raise ValueError(
            f"'{found}' holds no encoder: it has no config.json of transformers ('model_type'); save one there with "
            "save_pretrained"
        )
    return found


def network_folder(folder: Path, modules: list[Any] | None) -> Path:
    """Where the network and its tokenizer lie: in the folder itself, or where the first of its modules says.

    Args:
        folder: of transformers or sentence-transformers.
        modules: what its modules.json lists; None where there is none.

    Raises:
        ValueError: that is elsewhere.
    """
    place = modules[0].get("path", "") if modules else ""
    if not isinstance(place, str) or not (place == "" or PLAIN.fullmatch(place)):
        raise ValueError(f"'{folder / 'modules.json'}' names the folder {place!r}, which is no folder within it")
    return folder / place
