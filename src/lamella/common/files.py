"""Atomic files: written under a temporary name, flushed to the disk, then renamed."""

import errno
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
    "DISK_FULL",
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

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of errors that mean that nothing more can be written: the disk, a quota or the largest file is full."""
HALF_WRITTEN = re.compile(r"\.(.+\.)?[0-9a-f]{8}\.part")
"""The pattern of the names of temporary files of this module."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader, also after a crash at any moment, finds either the old or the new content.

    Args:
        path: the file. Its folder is created if it does not exist.
        content: the new content.

    Raises:
        OSError: the folder cannot be written, or the disk is full. The old file is unchanged.
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
    """Create a folder if necessary and make sure that it can be written, before hours of work that is stored there.

    Args:
        folder: the folder.

    Raises:
        ValueError: the folder cannot be written; the message says why.
    """
    probe = folder / f".{token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"folder '{folder}' cannot be written ({error.strerror}); choose another one") from error


def half_written(folder: Path) -> list[Path]:
    """List the temporary files of this module below `folder`, which a killed process has left behind."""
    return [file for file in folder.rglob(".*.part") if HALF_WRITTEN.fullmatch(file.name) and not file.is_dir()]


def refuse_links(*places: Path) -> None:
    """Make sure that none of the paths is a symbolic link, before Lamella writes or deletes there.

    The folder of a model or a run may come from an untrusted archive, which can contain links: `MODEL/sent` could point
    to any folder of the user. The folder that the user names may itself be a link, so it is not passed here.

    Args:
        places: files and folders that Lamella makes inside that folder, parents first. They need not exist.

    Raises:
        ValueError: one of them is a symbolic link.
    """
    for place in places:
        if place.is_symlink():
            raise ValueError(
                f"'{place}' is a symbolic link, which is not followed, because lamella writes and deletes there; "
                "remove the link"
            )


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Systems other than POSIX cannot open a folder; there, this does nothing."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_to_bytes(value: Any) -> bytes:
    """Encode a value as the content of a JSON file."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_atomic(path, json_to_bytes(value))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not valid JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise ValueError(f"'{path}' is not a readable JSON file ({error})") from error


def tensors_to_bytes(tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> bytes:
    """Encode tensors in the format of safetensors.

    Args:
        tensors: the tensors by name.
        notes: JSON values that are stored in the header.
    """
    from safetensors.torch import save

    plain = {name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    return save(plain, metadata={"notes": json.dumps(notes or {})})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> str:
    """Write a safetensors file atomically.

    Args:
        path: the file.
        tensors: the tensors by name.
        notes: JSON values that are stored in the header.

    Returns:
        The SHA-256 of the file's content, as hexadecimal digits.
    """
    content = tensors_to_bytes(tensors, notes)
    write_atomic(path, content)
    return sha256(content).hexdigest()


def read_tensors(path: Path, expected_sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file that Lamella wrote.

    Args:
        path: the file.
        expected_sha256: the checksum of its content; None checks nothing.

    Returns:
        The tensors by name, and the notes.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged, or its checksum is not the expected one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    if expected_sha256 is not None and sha256(content).hexdigest() != expected_sha256:
        raise ValueError(f"'{path}' is damaged: its checksum is not the recorded one; restore it from a copy")
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        notes = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["notes"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not a file that lamella wrote, or it is damaged ({error})") from error
    return tensors, notes
