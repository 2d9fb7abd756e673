"""What users call a backbone: a name, a folder that `lamella export` or timm wrote, or a name and a LoRA of PEFT."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella.backbones import bundled
from lamella.backbones.peft_lora import CONFIG

__all__ = ["backbone_table"]

_BUNDLED = {key: value for key, value in bundled.ARCHITECTURE.items() if key != "num_classes"}


def backbone_table(text: str) -> dict[str, Any]:
    """Arguments of `load_backbone`.

    Args:
        text: a name; a folder that holds timm's config.json, beside a checkpoint or an adapter of PEFT; or NAME+FOLDER,
            a name and an adapter trained on its pre-trained weights.

    Raises:
        ValueError: the folder does not say which network it is of, or it is one that no name stands for.
    """
    folder = Path(text)
    if folder.is_dir() and any((folder / file).is_file() for file in ("config.json", CONFIG)):
        return _of_folder(folder.absolute())
    name, plus, adapter = text.partition("+")
    return {"name": name, "adapter": str(Path(adapter).absolute())} if plus else {"name": name}


def _of_folder(folder: Path) -> dict[str, Any]:
    config = _read(folder)
    name, options = config["architecture"], dict(config.get("model_args") or {})
    size = options.pop("img_size", None)
    transform = config.get("pretrained_cfg") or {}
    if options | {"img_size": size} == _BUNDLED:
        name, size = bundled.NAME, None
    elif options:
        raise ValueError(
            f"'{folder}' holds '{name}' built with {', '.join(sorted(options))}, a network that no name stands for"
        )
    else:
        size = size or (transform.get("input_size") or [None])[-1]
    table: dict[str, Any] = {"name": name}
    if (folder / CONFIG).is_file():
        base = folder / "base.safetensors"  # which `lamella export` adds where others could not get it
        table |= {"adapter": str(folder)} | ({"weights": str(base)} if base.is_file() else {})
    else:
        table["weights"] = str(folder)
    return table | ({"size": int(size)} if size else {}) | _transform(name, transform, folder)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"'{path}' is not a JSON file ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ValueError(
            f"'{folder}' does not say which network of timm it is of (config.json, 'architecture'); give "
            + (f"NAME+{folder}" if (folder / CONFIG).is_file() else "the name, and the folder as weights")
        )
    return config


def _transform(name: str, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """How its images are cropped and normalised, where that is not the network's usual way."""
    import timm

    usual = timm.get_pretrained_cfg("" if name == bundled.NAME else name)
    mean, std = (tuple(getattr(usual, key, None) or (0.5,) * 3) for key in ("mean", "std"))
    own = tuple(given.get("mean") or mean), tuple(given.get("std") or std)
    if own != (mean, std) and own != ((0,) * 3, (1,) * 3):
        raise ValueError(
            f"'{folder}' normalises images by the mean {own[0]} and the deviation {own[1]}, '{name}' by {mean} and "
            f"{std}; only the latter, or none, can be had here"
        )
    shape = given.get("input_size") or (3, 1, 1)
    if shape[-2] != shape[-1]:
        raise ValueError(
            f"'{folder}' takes images of {shape[-2]} x {shape[-1]} pixels, and only square ones can be had"
        )
    view: dict[str, Any] = {"crop": float(given["crop_pct"])} if given.get("crop_pct") else {}
    for key, normal in (("interpolation", "bicubic"), ("crop_mode", "center")):
        if given.get(key, normal) != (getattr(usual, key, None) or normal):
            view[key] = given.get(key, normal)
    return view | ({} if own == (mean, std) else {"normalise": "none"})
