"""Files that are whole or not there: written to a temporary name, flushed to the disk, then renamed."""

import json
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "claim_folder",
    "half_written",
    "json_to_bytes",
    "read_json",
    "read_tensors",
    "refuse_links",
    "tensors_to_bytes",
    "write_atomic",
    "write_json",
    "write_tensors",
]

HALF_WRITTEN = re.compile(r"\.(.+\.)?[0-9a-f]{8}\.part")
"""Names of the temporary files of this module."""


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, or a crash at any moment, sees the old file or the new one.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{token_hex(4)}.part"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def claim_folder(folder: Path) -> None:
    """Make sure that `folder` exists and can be written, before hours of work want to be stored there.

    Raises:
        ValueError: it cannot, and why.
    """
    probe = folder / f".{token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"folder '{folder}' cannot be written ({error.strerror}); choose another one") from error


def half_written(folder: Path) -> list[Path]:
    """Temporary files below `folder` that a kill left behind; files of other programs are not among them."""
    return [file for file in folder.rglob(".*.part") if HALF_WRITTEN.fullmatch(file.name) and not file.is_dir()]


def refuse_links(*places: Path) -> None:
    """Make sure that none of these places is a symbolic link, before Lamella writes or deletes there.

    The folder of a model or of a run may come from a stranger, and archives keep links: `MODEL/sent` could lead to any
    folder of the user. The folder that the user named may itself be a link, so it is not among the places.

    Args:
        places: files and folders that Lamella makes within that folder, outer ones first; they need not exist.

    Raises:
        ValueError: one of them is a link.
    """
    for place in places:
        if place.is_symlink():
            raise ValueError(
                f"'{place}' is a symbolic link, which is not followed, because lamella writes and deletes there; "
                "remove the link"
            )


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; not every file system allows opening a folder, and then there is nothing to do."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_to_bytes(value: Any) -> bytes:
    """The text of a JSON file."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json_to_bytes(value))


def read_json(path: Path) -> Any:
    """Raises ValueError, naming the file, where it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"'{path}' is not a readable JSON file ({error})") from error


def tensors_to_bytes(tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> bytes:
    """The safetensors form of `tensors`; `notes` travel as JSON in its header."""
    from safetensors.torch import save

    plain = {name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    return save(plain, metadata={"notes": json.dumps(notes or {})})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> str:
    """Write atomically; returns the SHA-256 of the file's content."""
    content = tensors_to_bytes(tensors, notes)
    write_atomic(path, content)
    return sha256(content).hexdigest()


def read_tensors(path: Path, expected_sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and notes of a safetensors file.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged, or its checksum is not the expected one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    if expected_sha256 is not None and sha256(content).hexdigest() != expected_sha256:
        raise ValueError(f"'{path}' is damaged: its checksum is not the recorded one; restore it from a copy")
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        notes = json.loads(content[8 : 8 + size])["__metadata__"]["notes"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"'{path}' is not a file that lamella wrote, or it is damaged ({error})") from error
    return tensors, json.loads(notes)
