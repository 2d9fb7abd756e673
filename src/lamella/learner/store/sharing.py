"""Tensors that a version shares with earlier ones, by content: what did not change is not stored again.

The state of a version is its own file, and some tensors of the files of earlier versions. The own file's notes say
which tensors lie where, so that its checksum covers them:

    {"elsewhere": {"state-<checksum>.safetensors": ["heads.0.weight", ...]}}

A file is only shared if at least half of its bytes are used, so that the files of a version are never more than twice
as large as its tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.common.files import read_tensors
from lamella.learner.store.manifest import plain_file

__all__ = ["files_of", "load_state", "unchanged"]


def files_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the name, the checksum and the size of each file of a version's state, its own first."""
    return [{key: entry[key] for key in ("file", "sha256", "bytes")}, *entry.get("also", [])]


def load_state(folder: Path, entry: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a version.

    Args:
        folder: the model's folder.
        entry: the version's "state".

    Returns:
        The tensors by name, and the name of the file that holds each of them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    own, *others = files_of(entry)
    state, notes = _read(folder, own)
    holders = {name: str(own["file"]) for name in state}
    elsewhere = notes.get("elsewhere")
    if others and not _are_names(elsewhere):
        raise ValueError(f"'{folder / own['file']}' does not say what it shares; restore it from a copy")
    for other in others:
        tensors, _ = _read(folder, other)
        names = (elsewhere or {}).get(other["file"], [])
        if missing := [name for name in names if name not in tensors]:
            raise ValueError(f"'{folder / other['file']}' is damaged: it lacks '{missing[0]}'; restore it from a copy")
        state |= {name: tensors[name] for name in names}
        holders |= {name: str(other["file"]) for name in names}
    return state, holders


def _are_names(elsewhere: Any) -> bool:
    lists = elsewhere.values() if isinstance(elsewhere, dict) else [None]
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)


def _read(folder: Path, entry: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return read_tensors(plain_file(folder / entry["file"], entry["bytes"]), entry["sha256"])


def unchanged(
    state: Mapping[str, Tensor], before: Mapping[str, Tensor], holders: Mapping[str, str], sizes: Mapping[str, int]
) -> dict[str, list[str]]:
    """Return which tensors need not be stored again, as their names by the file that holds them.

    Args:
        state: the tensors of the new version.
        before: those of the version that it was made from.
        holders: the name of the file that holds each of these.
        sizes: the size of each file in bytes.
    """
    same: dict[str, list[str]] = {}
    for name, tensor in state.items():
        if name in before and _equal(tensor.cpu(), before[name]):
            same.setdefault(holders[name], []).append(name)
    return {
        file: sorted(names)
        for file, names in same.items()
        if 2 * sum(state[name].nbytes for name in names) >= sizes[file]
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits, so that 0 and -0 differ, and a NaN equals itself."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor; of a copy, since one of a single number may have any stride."""
    return torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.flatten()).view(torch.uint8)
