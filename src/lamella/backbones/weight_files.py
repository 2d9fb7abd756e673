"""Files of weights: found, read, and loaded strictly."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from lamella.common.checks import first_line

__all__ = ["CLASSIFIERS", "WeightsNotFound", "load_strict", "read_state", "weights_file"]


class WeightsNotFound(FileNotFoundError):
    """The weights of a backbone are neither here nor could they be downloaded."""


CLASSIFIERS = ("head.", "head_dist.", "fc.", "classifier.")
"""How the keys of classifiers begin, which no backbone here has."""

_FILES = ("model.safetensors", "model_fp16.safetensors", "pytorch_model.bin")


def weights_file(path: Path, names: Sequence[str] = _FILES) -> Path:
    """The file itself, or the first of these names that a folder holds.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file():
        return path
    for file in names:
        if (path / file).is_file():
            return path / file
    if path.is_dir():
        raise FileNotFoundError(f"folder '{path}' holds no weights; looked for {', '.join(names)}")
    raise FileNotFoundError(f"no weights at '{path}'; give a file, a folder, 'pretrained' or 'random'")


def read_state(path: Path) -> dict[str, Any]:
    """Tensors by key, of a safetensors or torch file.

    Raises:
        ValueError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, LookupError, UnpicklingError) as error:
        raise ValueError(f"'{path}' cannot be read as weights ({first_line(error)})") from error
    if not isinstance(state, dict):
        raise ValueError(f"'{path}' cannot be read as weights (it holds no table of tensors)")
    state = state.get("state_dict", state)
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_strict(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load all of a model's tensors; a classifier beside them is left out.

    Raises:
        ValueError: one is missing, strange, or of another shape.
    """
    own = model.state_dict()
    state = {k: v.float() for k, v in state.items() if k in own or not k.startswith(CLASSIFIERS)}
    missing, strange = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or strange or wrong:
        what = (
            f"lacks '{missing[0]}'"
            if missing
            else f"has a strange '{strange[0]}'"
            if strange
            else f"has another shape of '{wrong[0]}'"
        )
        raise ValueError(f"'{path}' does not fit this backbone: it {what}")
    if broken := [k for k, v in state.items() if not v.isfinite().all()]:
        raise ValueError(f"'{path}' has numbers in '{broken[0]}' that are not finite; get the file again")
    model.load_state_dict(state)
