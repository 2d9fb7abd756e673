"""A model on disk, in safetensors and JSON files. It is complete at every moment and keeps its earlier versions.

    MODEL/lamella.json                  which version is the current one, and the checksum of each version's file
    MODEL/versions/K.json               configuration, class names, records of tasks, state file and its checksum
    MODEL/state-<checksum>.safetensors  what was learned: all tensors except unchanged ones of the backbone, and those
                                        that lie in the files of earlier versions, see sharing.py

The files of a version are written first and never changed. Replacing `lamella.json` then makes the version current, in
one step. Files without an entry there, left behind by a killed process, are deleted when the next version is saved.
"""

import re
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lamella.common.files import (
    json_to_bytes,
    read_json,
    refuse_links,
    tensors_to_bytes,
    write_atomic,
)
from lamella.learner.store.manifest import checked_manifest, plain_file
from lamella.learner.store.sharing import files_of, load_state, unchanged

__all__ = [
    "FORMAT",
    "MANIFEST",
    "VERSIONS",
    "Version",
    "ancestors",
    "drop_versions",
    "history",
    "holds_model",
    "load_manifest",
    "load_model",
    "make_again",
    "manifest_file",
    "roll_back",
    "save_model",
]

FORMAT = 2
MANIFEST = "lamella.json"
VERSIONS = "versions"
NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class Version(NamedTuple):
    """One version of a model.

    Attributes:
        number: the number of the version, from 1.
        current: whether it is the current version.
        made: when it was saved, as "YYYY-MM-DDTHH:MM:SS" in local time.
        what: a short text that says what made this version.
        tasks: the names of the tasks it has learned, oldest first.
        bytes: the size of its files, without those that it shares with earlier versions that are left. So all versions
            together have the size of the folder.
        parent: the number of the version that was current when this one was made; None for the first, and where an
            older version of Lamella made it.
    """

    number: int
    current: bool
    made: str
    what: str
    tasks: tuple[str, ...]
    bytes: int
    parent: int | None = None


def holds_model(folder: Path) -> bool:
    """Whether `folder` holds a model."""
    return (folder / MANIFEST).exists()


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    *,
    what: str = "",
    keep: int | None = None,
    whole: bool = True,
) -> int:
    """Save a new version and make it the current one.

    Args:
        folder: the model's folder, which is created if it does not exist.
        state: the learned tensors by name.
        manifest: the metadata of the version, as JSON values.
        what: a short text for the history that says what made this version.
        keep: how many of the newest versions are kept, this one included, at least 1; None keeps all.
        whole: whether all tensors are stored with this version. If not, those that the current version has too are
            shared with it. A version that must not need an older one is whole: one that forgot something, say.

    Returns:
        The size of the state file in bytes.

    Raises:
        OSError: the folder cannot be written, or the disk is full. The stored model is unchanged.
        ValueError: `keep` is below 1, or the folder's "versions" is a symbolic link.
    """
    refuse_links(folder / VERSIONS)
    if keep is not None and keep < 1:
        raise ValueError(f"keep {keep} would leave no version; give 1 or more")
    pointer = _read_pointer(folder) if holds_model(folder) else {"versions": {}, "current": None, "dropped": {}}
    known = pointer["versions"]
    older = sorted(map(int, known))
    number = older[-1] + 1 if older else 1
    elsewhere, also = ({}, []) if whole or not older else _shared(folder, state)
    shared = {name for names in elsewhere.values() for name in names}
    own = {name: tensor for name, tensor in state.items() if name not in shared}
    content = tensors_to_bytes(own, {"elsewhere": elsewhere} if elsewhere else None)
    checksum = sha256(content).hexdigest()
    file = folder / f"state-{checksum[:16]}.safetensors"
    if not _holds(file, content):  # what has that name may be damaged
        write_atomic(file, content)
    entry = {"file": file.name, "sha256": checksum, "bytes": len(content)} | ({"also": also} if also else {})
    made: dict[str, Any] = {"version": number, "made": time.strftime("%Y-%m-%dT%H:%M:%S"), "what": what}
    made["parent"] = pointer["current"]
    version = json_to_bytes({**made, **manifest, "state": entry})
    write_atomic(_version_file(folder, number), version)
    kept = older if keep is None else older[max(0, len(older) + 1 - keep) :]
    digests = {str(n): known[str(n)] for n in kept} | {str(number): sha256(version).hexdigest()}
    _point(folder, number, digests, pointer["dropped"])
    _sweep(folder, digests)
    return len(content)


def _holds(file: Path, content: bytes) -> bool:
    try:
        return plain_file(file, len(content)).read_bytes() == content
    except (OSError, ValueError):
        return False


def _shared(folder: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Return which tensors the current version holds, by file, and these files' entries; none if it is damaged."""
    try:
        entry = load_manifest(folder)["state"]
        before, holders = load_state(folder, entry)
    except (OSError, ValueError):
        return {}, []
    files = files_of(entry)
    elsewhere = unchanged(state, before, holders, {part["file"]: part["bytes"] for part in files})
    return elsewhere, [part for part in files if part["file"] in elsewhere]


def load_model(folder: Path, version: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the state and the metadata of a version.

    Args:
        folder: the model's folder.
        version: the number of the version; None for the current one.

    Returns:
        The learned tensors by name, and the metadata.

    Raises:
        FileNotFoundError: there is no model, or one of its files is missing.
        ValueError: the model is damaged, was not written by Lamella, or was written by a newer Lamella; or there is no
            such version.
    """
    manifest = load_manifest(folder, version)
    entry = manifest["state"]
    for part in files_of(entry):
        if not (folder / part["file"]).exists():
            lost = f"version {manifest['version']} is lost; restore the file from a copy"
            raise FileNotFoundError(f"'{folder / part['file']}' is missing, so {lost}")
    state, _ = load_state(folder, entry)
    return state, manifest


def load_manifest(folder: Path, version: int | None = None) -> dict[str, Any]:
    """Read the metadata of a version, without its tensors. Arguments and errors are those of `load_model`."""
    pointer = _read_pointer(folder)
    number = pointer["current"] if version is None else version
    if str(number) not in pointer["versions"]:
        known = ", ".join(pointer["versions"])
        raise ValueError(f"'{folder}' has no version {number}; it has {known}")
    path = _version_file(folder, number)
    if not path.exists():
        raise FileNotFoundError(f"'{path}' is missing, so version {number} is lost; restore the file from a copy")
    if sha256(plain_file(path).read_bytes()).hexdigest() != pointer["versions"][str(number)]:
        raise ValueError(f"'{path}' is damaged: its checksum is not the recorded one; restore it from a copy")
    return checked_manifest(path, read_json(path))


def manifest_file(folder: Path, version: int | None = None) -> Path:
    """Return the file with the metadata of a version; of the current one where none is given."""
    return _version_file(folder, _read_pointer(folder)["current"] if version is None else version)


def history(folder: Path) -> list[Version]:
    """List all versions of the model at `folder`, oldest first."""
    pointer = _read_pointer(folder)
    found, counted = [], set[str]()
    for number in sorted(map(int, pointer["versions"])):
        manifest = load_manifest(folder, number)
        tasks = tuple(task["name"] for task in manifest["tasks"])
        current = number == pointer["current"]
        files = _needed(manifest) - counted
        counted |= files
        size = sum(_size(path) for path in (_version_file(folder, number), *(folder / name for name in files)))
        found.append(Version(number, current, manifest["made"], manifest["what"], tasks, size, parent(manifest)))
    return found


def parent(manifest: Mapping[str, Any]) -> int | None:
    """Return the number of the version that a version was made from; None where that is not known."""
    found = manifest.get("parent")
    return found if type(found) is int else None


def roll_back(folder: Path, to: int) -> None:
    """Make another version the current one. All versions are kept.

    Args:
        folder: the model's folder.
        to: the number of the version.

    Raises:
        FileNotFoundError: there is no model, or a file of that version is missing.
        ValueError: there is no such version, or it is damaged.
    """
    load_model(folder, to)
    pointer = _read_pointer(folder)
    _point(folder, to, pointer["versions"], pointer["dropped"])


def make_again(folder: Path, number: int, what: str, *, named_as: Mapping[str, Any] | None = None) -> None:
    """Save a copy of an earlier version as the new current version.

    Args:
        folder: the model's folder.
        number: the number of the earlier version.
        what: a short text for the history that says what made the new version.
        named_as: the metadata of another version, whose names its classes get, with the names that they had before;
            None leaves the names as they were.

    Raises:
        FileNotFoundError: there is no model, or a file of that version is missing.
        ValueError: there is no such version, or it is damaged.
    """
    state, manifest = load_model(folder, number)
    own = ("version", "made", "what", "parent", "state")
    learned = {key: value for key, value in manifest.items() if key not in own}
    if named_as is not None:
        learned |= _renamed(learned, named_as)
    save_model(folder, state, learned, what=what)


def _renamed(learned: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of classes, and their former names, as they are in the metadata of another version."""
    now = dict(other["class_names"])
    names = [[i, now.get(i, name)] for i, name in learned["class_names"]]
    former = {name: i for manifest in (learned, other) for i, name in manifest.get("former_names", [])}
    ids, taken = {i for i, _ in names}, {name for _, name in names}
    kept = [[i, name] for name, i in former.items() if i in ids and name not in taken]
    return {"class_names": names, "former_names": kept}


def ancestors(folder: Path) -> list[int]:
    """Return the versions that are left of those that the current one was made from, newest first.

    What is not known of versions of older Lamellas is taken to be the number before.
    """
    known = {version.number: version for version in history(folder)}
    dropped = _read_pointer(folder)["dropped"]
    number = next(version.number for version in known.values() if version.current)
    found: list[int] = []
    while number > 1:
        before = known[number].parent if number in known else dropped.get(str(number))
        number = before if before is not None and before < number else number - 1
        if number in known:
            found.append(number)
    return found


def drop_versions(folder: Path, numbers: Collection[int]) -> int:
    """Delete versions permanently, with the files that no other version needs.

    Args:
        folder: the model's folder.
        numbers: the numbers of the versions; numbers without a version are ignored.

    Returns:
        The size of the deleted files in bytes.

    Raises:
        ValueError: the current version is among them, or the folder's "versions" is a symbolic link.
    """
    refuse_links(folder / VERSIONS)
    pointer = _read_pointer(folder)
    if pointer["current"] in numbers:
        raise ValueError(f"version {pointer['current']} of '{folder}' is in use; roll back to another one first")
    left = {number: digest for number, digest in pointer["versions"].items() if int(number) not in numbers}
    gone = {str(v.number): v.parent for v in history(folder) if str(v.number) not in left and v.parent is not None}
    _point(folder, pointer["current"], left, pointer["dropped"] | gone)
    return _sweep(folder, left)


def _version_file(folder: Path, number: int) -> Path:
    return folder / VERSIONS / f"{number}.json"


def _point(folder: Path, current: int, digests: Mapping[str, str], dropped: Mapping[str, int]) -> None:
    """Write lamella.json.

    Args:
        folder: the model's folder.
        current: the number of the current version.
        digests: the checksum of each version's file.
        dropped: the parent of each version that was deleted, so that one can still go back along it.
    """
    pointer = {"lamella": FORMAT, "current": current, "versions": dict(digests), "dropped": dict(dropped)}
    write_atomic(folder / MANIFEST, json_to_bytes(pointer))


def _read_pointer(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        of_run = f"that of this run is '{folder / 'model'}'" if holds_model(folder / "model") else ""
        raise FileNotFoundError(f"'{folder}' holds no model (no {MANIFEST}); {of_run or '`lamella learn` makes one'}")
    pointer = read_json(plain_file(path))
    form = pointer.get("lamella") if isinstance(pointer, dict) else None
    if not isinstance(form, int):
        raise ValueError(f"'{path}' was not written by lamella")
    if form > FORMAT:
        raise ValueError(f"'{path}' has format {form}, but this lamella reads formats up to {FORMAT}; upgrade lamella")
    if form < FORMAT:
        raise ValueError(f"'{path}' has format {form}, from before the first release of lamella; learn the model again")
    versions, current, dropped = pointer.get("versions"), pointer.get("current"), pointer.setdefault("dropped", {})
    if not isinstance(dropped, dict) or not all(
        NUMBER.fullmatch(number) and type(parent) is int for number, parent in dropped.items()
    ):
        raise ValueError(f"'{path}' was not written by lamella")
    if not isinstance(versions, dict) or not all(map(NUMBER.fullmatch, versions)):
        raise ValueError(f"'{path}' was not written by lamella")
    if type(current) is not int or str(current) not in versions:
        raise ValueError(f"'{path}' was not written by lamella")
    return pointer


def _sweep(folder: Path, digests: Mapping[str, str]) -> int:
    """Delete incomplete files, version files without an entry, and tensors that no version needs; return the bytes."""
    useless = [file for file in (folder / VERSIONS).glob("*.json") if file.stem not in digests]
    for pattern in (".state-*.part", ".backbone-*.part", f".{MANIFEST}.*.part", f"{VERSIONS}/.*.part"):
        useless += folder.glob(pattern)
    # A damaged version may be restored from a copy, and then needs its state file.
    with suppress(FileNotFoundError, ValueError):
        needed = {file for number in digests for file in _needed(load_manifest(folder, int(number)))}
        tensors = (*folder.glob("state-*.safetensors"), *folder.glob("backbone-*.safetensors"))
        useless += [file for file in tensors if file.name not in needed]
    freed = sum(map(_size, useless))
    for file in useless:
        file.unlink(missing_ok=True)
    return freed


def _needed(manifest: Mapping[str, Any]) -> set[str]:
    """Return the names of the files with tensors that a version needs."""
    copy = manifest.get("backbone_copy")
    return {part["file"] for part in files_of(manifest["state"])} | ({copy} if copy else set())


def _size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it is missing."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
