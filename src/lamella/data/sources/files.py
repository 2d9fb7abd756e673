"""Files of samples in folders: which files are images or texts, which folders count, and what their names mean."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.data.decoding import image_endings
from lamella.data.names import alike

__all__ = [
    "IMAGES",
    "KINDS",
    "PARTS",
    "TEST_PARTS",
    "TEXTS",
    "TRAIN_PARTS",
    "FileKind",
    "LabelledFile",
    "all_files",
    "check_utf8",
    "folder_names",
    "keys_of_files",
    "list_images",
    "list_samples",
    "used_parts",
]

TRAIN_PARTS = ("train", "training")
TEST_PARTS = ("test", "testing", "val", "valid", "validation")
PARTS = {name: name in TEST_PARTS for name in (*TRAIN_PARTS, *TEST_PARTS)}
"""The names of parts of a data set, in small letters: whether each is a test part."""
LEFT_BY_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
"""Folders that systems leave behind, and that nobody means as a class."""


@dataclass(frozen=True)
class FileKind:
    """A kind of samples that lie in files of their own.

    Attributes:
        noun: what one is called; several are called by it with an "s".
        endings: the endings of the names of such files, in small letters.
    """

    noun: str
    endings: Callable[[], tuple[str, ...]]

    def __contains__(self, file: str) -> bool:
        """Whether a file of this name is one."""
        return Path(file).suffix.lower() in self.endings() and not file.startswith(".")


def _text_endings() -> tuple[str, ...]:
    return (".txt",)


IMAGES = FileKind("image", image_endings)
TEXTS = FileKind("text", _text_endings)
KINDS = {"images": IMAGES, "texts": TEXTS}
"""The kinds of samples that a folder may hold, by the word for them."""


@dataclass(frozen=True)
class LabelledFile:
    """One file of a sample and what is known of it.

    Attributes:
        path: of the file.
        class_name: the name of its class.
        domain: the name of its domain, where there are domains.
        is_test: whether it is in the test part; None where no split is given.
    """

    path: Path
    class_name: str
    domain: str | None = None
    is_test: bool | None = None


def folder_names(path: Path) -> list[str]:
    """The folders in a folder, sorted by name.

    Hidden ones are left out, those that systems leave behind, and links to the folder itself or to one around it.
    """
    here = path.resolve()
    return sorted(
        entry.name
        for entry in path.iterdir()
        if entry.is_dir() and not _is_left(entry.name) and not here.is_relative_to(entry.resolve())
    )


def list_samples(path: Path, kind: FileKind) -> list[Path]:
    """All files of a kind below a folder, at any depth, sorted; every file once.

    A link to a file is followed, a link to a folder is not.

    Raises:
        ValueError: there are none.
    """
    samples: dict[Path, Path] = {}
    others: set[str] = set()
    for file in all_files(path):
        if file.name in kind:
            samples.setdefault(file.resolve(), file)
        else:
            others.add(file.suffix.lower() or file.name)
    if not samples:
        found = f" (only {', '.join(sorted(others)[:5])} files)" if others else ""
        known = ", ".join(kind.endings())
        raise ValueError(f"class folder {path} has no {kind.noun}s{found}; remove it or add {known} files")
    return sorted(samples.values())


def list_images(path: Path) -> list[Path]:
    """All image files below a folder, as `list_samples` finds them.

    Raises:
        ValueError: there are none.
    """
    return list_samples(path, IMAGES)


def all_files(path: Path) -> Iterator[Path]:
    """Yield all files below a folder, without those in folders that are hidden or left behind by a system.

    Links to folders are no files.
    """
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not _is_left(name))
        yield from (Path(folder, file) for file in sorted(files))


def _is_left(folder: str) -> bool:
    """Whether a folder is hidden, or left behind by a system."""
    return folder.startswith(".") or folder in LEFT_BY_SYSTEMS


def keys_of_files(root: Path, files: Sequence[LabelledFile]) -> list[str]:
    """Return the path of each file relative to a folder, with slashes.

    Raises:
        ValueError: a name is not UTF-8.
    """
    keys = [Path(os.path.relpath(file.path, root)).as_posix() for file in files]
    check_utf8(keys)
    return keys


def check_utf8(names: Sequence[str]) -> None:
    """Raise ValueError where the system could not decode a name: no file of ours could hold it."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the name {os.fsencode(name)} is not UTF-8; rename the file or folder") from None


def used_parts(parts: Sequence[str]) -> list[bool]:
    """Return for each row of a table whether it is used, by the names of the parts that the rows are in.

    All are used, but for a validation part beside a test part.

    >>> used_parts(["train", "val", "Test"]), used_parts(["train", "val"])
    ([True, False, True], [True, True])
    """
    named = [alike(part) for part in parts]
    if not {"test", "testing"} & set(named):
        return [True] * len(named)
    return [part not in ("val", "valid", "validation") for part in named]
