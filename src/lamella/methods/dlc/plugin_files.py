"""Plugins as downloads: take one out of a DLC model, keep it in a file, put it back.

A plugin is its branches, its gate (a row of V and an entry of b), and the columns that the classifier has for its
features, of the rows of all classes.

What is taken out is gone as if it had never been aggregated: every class loses these columns of its row, a softmax
shares itself out among the gates that are left, and nothing is trained again. Rows stay, also those of the plugin's own
classes: the base knows these classes, and so do the columns of its features. With all plugins out the model is the
base, bit for bit; with all of them back it is what it was, bit for bit.

A file is safetensors, and its header says what the plugin was made for. It fits only the weights beside which it was
saved: the base after its last task, and the classifier's columns for the base's features.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.adapters.adapter import adapter_state
from lamella.common.files import read_tensors, tensors_to_bytes, write_tensors
from lamella.common.version import __version__
from lamella.methods.dlc.dlc import DLC
from lamella.methods.shared.heads import Heads

__all__ = ["load_plugin", "put_back", "save_plugin", "take_out"]

SETTINGS = ("rank", "factorisation", "gate")
FORMER = ("aggregate", "gate_input")  # settings that files have from the time when there was a choice


def save_plugin(method: DLC, name: str, path: str | Path) -> None:
    """Write one plugin, which stays in place, to a safetensors file.

    Raises:
        ValueError: no plugin of this name is in place.
        OSError: the file cannot be written.
    """
    tensors = _tensors(method, name)
    task = method.heads[int(name.rpartition("-")[2])].classes
    notes = {"plugin": name, "lamella": __version__, "classes": task}
    write_tensors(Path(path), tensors, notes | _kind(method) | {"made_for": _digest(method)})


def load_plugin(method: DLC, path: str | Path) -> str:
    """Put the plugin of a file in its place; returns its name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plugin, of another kind, made for other weights, or in place already.
    """
    state, notes = read_tensors(Path(path))
    kind = _kind(method)
    if not isinstance(notes, dict) or not {"plugin", "made_for", *kind} <= notes.keys():
        raise ValueError(f"'{path}' holds no plugin; `save_plugin` writes one")
    for key, own in kind.items():
        if notes[key] != own:
            raise ValueError(
                f"'{path}' was made with {key} {notes[key]!r}, this model has {own!r}; load it where it fits"
            )
    if notes["made_for"] != _digest(method):
        raise ValueError(
            f"'{path}' was made for another base or classifier; a plugin fits only those it was saved beside"
        )
    put_back(method, notes["plugin"], state)
    return notes["plugin"]


def take_out(method: DLC, name: str) -> dict[str, Tensor]:
    """Remove a plugin; returns its tensors.

    Raises:
        ValueError: no plugin of this name is in place.
    """
    state, place = _tensors(method, name), method.plugins.index(name)
    method.tails.detach([name])
    method.unit.remove(place)
    start, end = ((i + place) * method.backbone.width for i in (1, 2))
    _rebuild(method, [torch.cat([w[:, :start], w[:, end:]], 1) for w in _weights(method)])
    return state


def put_back(method: DLC, name: str, state: Mapping[str, Tensor]) -> None:
    """Put in place what `take_out` returned.

    Raises:
        ValueError: the plugin is in place already, was never learned, or its tensors do not fit.
    """
    if name not in method.learned_plugins:
        raise ValueError(f"this model has not learned '{name}'; it has learned {', '.join(method.learned_plugins)}")
    rows, width = sum(map(len, _weights(method))), method.backbone.width
    wanted: dict[str, tuple[int, ...]] = {"gate.weight": (width,), "gate.bias": ()} if method.gate != "fixed" else {}
    wanted["columns"] = (rows, width)
    for key, shape in wanted.items():
        if key not in state or state[key].shape != shape:
            found = tuple(state[key].shape) if key in state else "none"
            raise ValueError(f"'{key}' of '{name}' has the shape {found}, not {shape}; it belongs to another model")
    branches = {key: value for key, value in state.items() if key not in wanted}
    strange = [key for key in branches if f".branches.{name}." not in key]
    if strange or not branches:
        found = f"there is '{strange[0]}'" if strange else "there is no branch"
        raise ValueError(f"these are not the tensors of '{name}': {found}; give what `take_out` returned for it")
    method.tails.attach(branches)
    place = method.plugins.index(name)
    if "gate.weight" in wanted:
        method.unit.insert(place, state["gate.weight"], state["gate.bias"])
    weights, start = _weights(method), (1 + place) * width
    columns = state["columns"].to(weights[0]).split([len(w) for w in weights])
    _rebuild(method, [torch.cat([w[:, :start], c, w[:, start:]], 1) for w, c in zip(weights, columns, strict=True)])


def _tensors(method: DLC, name: str) -> dict[str, Tensor]:
    if name not in method.plugins:
        raise ValueError(f"no plugin '{name}' is in place; there are: {', '.join(method.plugins) or 'none'}")
    place, width = method.plugins.index(name), method.backbone.width
    state = adapter_state(method.tails.sites, name)
    if method.gate != "fixed":
        state |= {"gate.weight": method.unit.weight[place].clone(), "gate.bias": method.unit.bias[place].clone()}
    state["columns"] = torch.cat([w[:, (1 + place) * width :][:, :width] for w in _weights(method)])
    return state


def _weights(method: DLC) -> list[Tensor]:
    return [method.heads[i].weight.data for i in range(len(method.heads))]


def _rebuild(method: DLC, weights: list[Tensor]) -> None:
    """Give the classifier other columns."""
    heads = Heads(weights[0].shape[1]).to(weights[0].device)
    for i, weight in enumerate(weights):
        head = heads.grow(method.heads[i].classes)
        head.weight.data.copy_(weight)
        head.bias.data.copy_(method.heads[i].bias)
    heads.start, heads.seed = method.heads.start, method.heads.seed  # not before: these rows are not drawn
    method.heads = heads


def _kind(method: DLC) -> dict[str, Any]:
    kind = {key: getattr(method, key) for key in SETTINGS} | {key: method.removed[key] for key in FORMER}
    return kind | {"layers": [site.name for site in method.tails.sites]}


def _digest(method: DLC) -> str:
    """Of all that a plugin was trained beside and that stays when plugins go: the base's network, and its columns."""
    state = {k: v for k, v in method.backbone.model.state_dict().items() if ".branches." not in k}
    for i, weight in enumerate(_weights(method)):
        state |= {f"{i}.weight": weight[:, : method.backbone.width], f"{i}.bias": method.heads[i].bias}
        state |= {f"{i}.ids": method.heads[i].ids}
    return sha256(tensors_to_bytes(state)).hexdigest()
