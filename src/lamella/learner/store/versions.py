"""A model on disk: safetensors and JSON only, whole at every moment, and every earlier version still there.

    MODEL/lamella.json                  which version is the current one, and the checksum of each version's file
    MODEL/versions/K.json               configuration, class names, ledger of tasks, state file and its checksum
    MODEL/state-<checksum>.safetensors  what was learned: all tensors but those of the backbone still as loaded

The files of a version are written first and never changed; replacing `lamella.json` is the one step that makes it the
model. What a kill left without an entry there is swept up by the next version.
"""

import time
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lamella.common.files import (
    json_to_bytes,
    read_json,
    read_tensors,
    refuse_links,
    tensors_to_bytes,
    write_atomic,
)

__all__ = [
    "FORMAT", "MANIFEST", "VERSIONS", "Version", "drop_versions", "history", "holds_model", "load_manifest",
    "load_model", "make_again", "roll_back", "save_model",
]  # fmt: skip

FORMAT = 2
MANIFEST = "lamella.json"
VERSIONS = "versions"


class Version(NamedTuple):
    """One version of a model.

    Attributes:
        number: from 1. current: whether it is the model now. made: when, local time. what: what made it.
        tasks: names of the tasks it has learned. bytes: of its state file.
    """

    number: int
    current: bool
    made: str
    what: str
    tasks: tuple[str, ...]
    bytes: int


def holds_model(folder: Path) -> bool:
    """Whether there is a model at `folder`."""
    return (folder / MANIFEST).exists()


def save_model(
    folder: Path, state: Mapping[str, Tensor], manifest: Mapping[str, Any], *, what: str = "", keep: int | None = None
) -> int:
    """Make `state` and `manifest` a new version and the current one; returns the bytes of the state file.

    Args:
        what: what made this version, for its history.
        keep: how many of the newest versions stay, this one included; all of them where left out.

    Raises:
        OSError: the folder cannot be written or the disk is full; the model that was there is untouched.
        ValueError: `keep` is below 1, or the folder's "versions" is a symbolic link.
    """
    refuse_links(folder / VERSIONS)
    if keep is not None and keep < 1:
        raise ValueError(f"keep {keep} would leave no version; give 1 or more")
    known = _read_pointer(folder)["versions"] if holds_model(folder) else {}
    older = sorted(map(int, known))
    number = older[-1] + 1 if older else 1
    content = tensors_to_bytes(state)
    checksum = sha256(content).hexdigest()
    file = folder / f"state-{checksum[:16]}.safetensors"
    if not file.exists():
        write_atomic(file, content)
    entry = {"file": file.name, "sha256": checksum, "bytes": len(content)}
    made = {"version": number, "made": time.strftime("%Y-%m-%dT%H:%M:%S"), "what": what}
    version = json_to_bytes({**made, **manifest, "state": entry})
    write_atomic(_version_file(folder, number), version)
    kept = older if keep is None else older[max(0, len(older) + 1 - keep) :]
    digests = {str(n): known[str(n)] for n in kept} | {str(number): sha256(version).hexdigest()}
    _point(folder, number, digests)
    _sweep(folder, digests)
    return len(content)


def load_model(folder: Path, version: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and manifest of a version of the model at `folder`, the current one where none is named.

    Raises:
        FileNotFoundError: there is no model, or one of its files is missing.
        ValueError: it is damaged, foreign, or written by a newer version; or there is no such version.
    """
    manifest = load_manifest(folder, version)
    entry = manifest["state"]
    if not (folder / entry["file"]).exists():
        lost = f"version {manifest['version']} is lost; restore the file from a copy"
        raise FileNotFoundError(f"'{folder / entry['file']}' is missing, so {lost}")
    state, _ = read_tensors(folder / entry["file"], entry["sha256"])
    return state, manifest


def load_manifest(folder: Path, version: int | None = None) -> dict[str, Any]:
    """What `load_model` says of a version besides its tensors."""
    pointer = _read_pointer(folder)
    number = pointer["current"] if version is None else version
    if str(number) not in pointer["versions"]:
        known = ", ".join(pointer["versions"])
        raise ValueError(f"'{folder}' has no version {number}; it has {known}")
    path = _version_file(folder, number)
    if not path.exists():
        raise FileNotFoundError(f"'{path}' is missing, so version {number} is lost; restore the file from a copy")
    if sha256(path.read_bytes()).hexdigest() != pointer["versions"][str(number)]:
        raise ValueError(f"'{path}' is damaged: its checksum is not the recorded one; restore it from a copy")
    return read_json(path)


def history(folder: Path) -> list[Version]:
    """All versions of the model at `folder`, oldest first."""
    pointer = _read_pointer(folder)
    found = []
    for number in sorted(map(int, pointer["versions"])):
        manifest = load_manifest(folder, number)
        tasks = tuple(task["name"] for task in manifest["tasks"])
        current = number == pointer["current"]
        found.append(Version(number, current, manifest["made"], manifest["what"], tasks, manifest["state"]["bytes"]))
    return found


def roll_back(folder: Path, to: int) -> None:
    """Make an earlier (or later) version the current one again; no version is lost.

    Raises:
        FileNotFoundError, ValueError: as `load_model` of that version.
    """
    load_model(folder, to)
    _point(folder, to, _read_pointer(folder)["versions"])


def make_again(folder: Path, number: int, what: str) -> None:
    """Make a new version that is the same as an earlier one.

    Raises:
        FileNotFoundError, ValueError: as `load_model` of that version.
    """
    state, manifest = load_model(folder, number)
    learned = {key: value for key, value in manifest.items() if key not in ("version", "made", "what", "state")}
    save_model(folder, state, learned, what=what)


def drop_versions(folder: Path, numbers: Collection[int]) -> None:
    """Remove versions for good, with what only they need.

    Raises:
        ValueError: the current one is among them, or the folder's "versions" is a symbolic link.
    """
    refuse_links(folder / VERSIONS)
    pointer = _read_pointer(folder)
    if pointer["current"] in numbers:
        raise ValueError(f"version {pointer['current']} of '{folder}' is in use; roll back to another one first")
    left = {number: digest for number, digest in pointer["versions"].items() if int(number) not in numbers}
    _point(folder, pointer["current"], left)
    _sweep(folder, left)


def _version_file(folder: Path, number: int) -> Path:
    return folder / VERSIONS / f"{number}.json"


def _point(folder: Path, current: int, digests: Mapping[str, str]) -> None:
    write_atomic(folder / MANIFEST, json_to_bytes({"lamella": FORMAT, "current": current, "versions": dict(digests)}))


def _read_pointer(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"'{folder}' holds no model (no {MANIFEST}); `lamella learn` makes one")
    pointer = read_json(path)
    form = pointer.get("lamella") if isinstance(pointer, dict) else None
    if not isinstance(form, int):
        raise ValueError(f"'{path}' was not written by lamella")
    if form > FORMAT:
        raise ValueError(f"'{path}' has format {form}, this lamella reads up to {FORMAT}; upgrade lamella")
    if form < FORMAT:
        raise ValueError(f"'{path}' has format {form} of a lamella before its first release; learn the model again")
    if not isinstance(pointer.get("versions"), dict) or str(pointer.get("current")) not in pointer["versions"]:
        raise ValueError(f"'{path}' was not written by lamella")
    return pointer


def _sweep(folder: Path, digests: Mapping[str, str]) -> None:
    """Remove half-written files, version files without an entry, and tensors that no version needs."""
    for file in (folder / VERSIONS).glob("*.json"):
        if file.stem not in digests:
            file.unlink(missing_ok=True)
    for pattern in (".state-*.part", ".backbone-*.part", f".{MANIFEST}.*.part", f"{VERSIONS}/.*.part"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
    try:
        manifests = [load_manifest(folder, int(number)) for number in digests]
    except (FileNotFoundError, ValueError):
        return  # a damaged version may be restored from a copy, and then wants its state
    needed = {name for manifest in manifests for name in (manifest["state"]["file"], manifest.get("backbone_copy"))}
    for file in (*folder.glob("state-*.safetensors"), *folder.glob("backbone-*.safetensors")):
        if file.name not in needed:
            file.unlink(missing_ok=True)
