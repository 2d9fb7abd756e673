"""What users call a backbone: a name, a folder of timm, transformers or `lamella export`, or one and a LoRA of PEFT."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lamella.backbones import bundled
from lamella.backbones.causal_models import OUTPUT
from lamella.backbones.encoder_places import holds_encoder, is_path
from lamella.backbones.gguf_files import is_gguf
from lamella.backbones.peft_lora import CONFIG
from lamella.common.files import read_json

__all__ = ["backbone_table"]


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**20


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


FORMS: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "model_args": {"img_size": (_is_side, "a whole number above 0")},
    "pretrained_cfg": {
        "input_size": (lambda v: isinstance(v, list) and len(v) == 3 and all(map(_is_side, v)), "three whole numbers"),
        "mean": (_are_numbers, "three numbers"),
        "std": (_are_numbers, "three numbers"),
        "crop_pct": (_is_number, "a number"),
        "interpolation": (_is_text, "a text"),
        "crop_mode": (_is_text, "a text"),
    },
}
"""What is read of the tables of timm's config.json: the check of each value, and what it should be in words."""

_BUNDLED = {key: value for key, value in bundled.ARCHITECTURE.items() if key != "num_classes"}


def backbone_table(text: str) -> dict[str, Any]:
    """Arguments of `load_backbone`.

    Args:
        text: a name; a GGUF file; a folder that holds timm's config.json, beside a checkpoint or an adapter of PEFT;
            the folder of an encoder; or NAME+FOLDER, one of these and an adapter trained on its pre-trained weights.

    Raises:
        ValueError: the folder does not say which network it is of, or it is one that no name stands for.
    """
    folder = Path(text).expanduser()
    if folder.is_dir() and holds_encoder(folder):
        return {"name": str(folder.absolute())}
    if folder.is_dir() and any((folder / file).is_file() for file in ("config.json", CONFIG)):
        return _of_folder(folder.absolute())
    if is_gguf(text) and folder.is_file():
        return {"name": str(folder.absolute()), "output": OUTPUT}
    name, plus, adapter = text.partition("+")
    if plus:
        return backbone_table(name) | {"adapter": str(Path(adapter).expanduser().absolute())}
    return {"name": str(folder.absolute()) if is_path(name) else name}


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
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ValueError(
            f"'{folder}' does not say which network of timm it is of (config.json, 'architecture'); give "
            + (f"NAME+{folder}" if (folder / CONFIG).is_file() else "the name, and the folder as weights")
        )
    for table, forms in FORMS.items():
        given = config.get(table) or {}
        if not isinstance(given, dict):
            raise ValueError(f"'{path}' was not written by timm: '{table}' should be a table; export the model again")
        for key, (fits, words) in forms.items():
            if given.get(key) is not None and not fits(given[key]):
                found = str(given[key])[:60]
                raise ValueError(
                    f"'{path}' was not written by timm: '{table}.{key}' should be {words}, not {found!r}; export the "
                    "model again"
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
