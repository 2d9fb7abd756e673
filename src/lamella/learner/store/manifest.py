"""The checked form of the JSON files of a model's folder, which may come from a stranger.

A version's file names other files of the folder and lists what the model has learned. All that is read from it is
checked here, once: the form of each value, and that a name of a file is one that Lamella gives. So no file outside the
folder is read, and a wrong value is one clear line.
"""

import re
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lamella.learner.store.record_form import is_count, is_table, is_text, wrong_field

__all__ = ["checked_manifest", "plain_file"]

DIGEST = re.compile(r"[0-9a-f]{64}")
STATE = re.compile(r"state-[0-9a-f]{16}\.safetensors")
BACKBONE = re.compile(r"backbone-[0-9a-f]{16}\.safetensors")


def _is_config(value: Any) -> bool:
    if not is_table(value) or not all(is_table(value.get(key)) for key in ("backbone", "method", "fit", "run")):
        return False
    return all(is_text(value[key].get("name")) for key in ("backbone", "method")) and is_count(value["run"].get("seed"))


def _are_names(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(pair, list) and len(pair) == 2 and is_count(pair[0]) and is_text(pair[1]) for pair in value)


def _are_records(value: Any) -> bool:
    return isinstance(value, list)  # each of them is checked field by field


def _is_state(value: Any) -> bool:
    return _is_file(value) and isinstance(value.get("also", []), list) and all(map(_is_file, value.get("also", [])))


def _is_file(value: Any) -> bool:
    return (
        is_table(value)
        and _matches(STATE, value.get("file"))
        and _matches(DIGEST, value.get("sha256"))
        and type(value.get("bytes")) is int
        and value["bytes"] >= 0
    )


def _is_copy(value: Any) -> bool:
    return value is None or _matches(BACKBONE, value)


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "version": (is_count, "a whole number"),
    "made": (is_text, "a time as text"),
    "what": (is_text, "a text"),
    "config": (_is_config, "tables, among them backbone and method with a name, fit, and run with a seed"),
    "weights_sha256": (is_text, "a checksum"),
    "class_names": (_are_names, "pairs of a class id and a name"),
    "tasks": (_are_records, "records, each with a name and the ids of its classes"),
    "notes": (is_table, "a table"),
    "state": (_is_state, "the name state-<16 digits>.safetensors of a file of the folder, its checksum and its size"),
}
"""Each key of a version that must be there, the check of its value, and what it should be in words."""


def checked_manifest(path: Path, manifest: Any) -> dict[str, Any]:
    """Return the content of a version's file if it has the form that Lamella writes.

    Args:
        path: the file, for the message.
        manifest: its JSON values.

    Raises:
        ValueError: a value is missing or has another form; the message names it.
    """
    if not is_table(manifest):
        raise ValueError(f"'{path}' was not written by lamella: it is no table; restore it from a copy")
    for key, (fits, words) in FORMS.items():
        if not fits(manifest.get(key)):
            raise ValueError(f"'{path}' was not written by lamella: '{key}' should be {words}; restore it from a copy")
    names = manifest["class_names"]
    for number, record in enumerate(manifest["tasks"], 1):
        if wrong := wrong_field(record):
            raise ValueError(f"'{path}' is damaged: in the record of task {number}, {wrong}; restore it from a copy")
    for what, values in (("id", [i for i, _ in names]), ("name", [name for _, name in names])):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"'{path}' is damaged: two classes have the {what} {twice[0]!r}; restore it from a copy")
    named = {i for i, _ in names}
    if unnamed := [i for task in manifest["tasks"] for i in task["classes"] if i not in named]:
        raise ValueError(f"'{path}' is damaged: class {unnamed[0]} of a task has no name; restore it from a copy")
    if not _are_names(manifest.get("former_names", [])):
        raise ValueError(f"'{path}' was not written by lamella: 'former_names' should be pairs of an id and a name")
    if not _is_copy(manifest.get("backbone_copy")):
        raise ValueError(
            f"'{path}' was not written by lamella: 'backbone_copy' should be the name "
            "backbone-<16 digits>.safetensors of a file of the folder; restore it from a copy"
        )
    return manifest


def plain_file(path: Path, size: int | None = None) -> Path:
    """Return the path of a file that is safe to read whole: no link, device or pipe, and of the recorded size.

    Args:
        path: a file that Lamella has written.
        size: its recorded size in bytes; None if that is not known.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is something else than a plain file, or has another size.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"'{path}' is no plain file (a link, a device or a folder); restore it from a copy")
    if size is not None and found.st_size != size:
        raise ValueError(f"'{path}' is damaged: it has {found.st_size} bytes, not {size}; restore it from a copy")
    return path
