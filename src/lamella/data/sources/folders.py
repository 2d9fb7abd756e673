"""Image folders: `class/*.jpg`, the same under `train/` and `test/`, or `domain/class/*.jpg`."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lamella.common.checks import check_one_of
from lamella.common.words import many
from lamella.data.decoding import image_endings
from lamella.data.images import Files, ImageSet
from lamella.data.names import alike, normal_name
from lamella.data.scenario import Source
from lamella.data.sources.parts import divide

__all__ = ["PARTS", "Photo", "folder_names", "list_images", "load_folder", "photos_to_source"]

TRAIN_PARTS = ("train", "training")
TEST_PARTS = ("test", "testing", "val", "valid", "validation")
PARTS = {name: name in TEST_PARTS for name in (*TRAIN_PARTS, *TEST_PARTS)}
"""The names of parts of a data set, in small letters: whether each is a test part."""
LAYOUTS = ("auto", "classes", "domains")
LEFT_BY_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
"""Folders that systems leave behind, and that nobody means as a class."""


@dataclass(frozen=True)
class Photo:
    """One image file and what is known of it."""

    path: Path
    class_name: str
    domain: str | None = None
    is_test: bool | None = None


def load_folder(
    path: Path,
    *,
    name: str | None = None,
    layout: str = "auto",
    renamed: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Load an image folder; classes are its folders, sorted by name.

    `train/` beside `test/` (or `val/`) is taken as the split; where both `test/` and `val/` are there, `val/` is left
    alone. Without them a split is made from the files' relative paths. What was taken stands in the source's `told`.

    Args:
        path: of the folder.
        name: of the data set; the folder's name where left out.
        layout: "classes" (`class/` with images at any depth), "domains" (`domain/class/`), or "auto", which takes
            classes where some hold images themselves, and asks otherwise.
        renamed: folder name -> class name, for folders called by an identifier.
        test_fraction: of each class to hold out for testing where there is no test part.
        split_seed: of that split.

    Raises:
        ValueError: there are no images, a class folder is empty, the parts do not fit together, or it is not clear what
            the folders are.
    """
    check_one_of("layout", layout, LAYOUTS)
    train, test = _parts(path, layout)
    if layout == "auto":
        _check_clear([part for part in (train, test) if part is not None])
    photos = [photo for part in (train, test) if part is not None for photo in _photos(part, layout, part is test)]
    if test is None:  # no part of its own, so that one is made
        photos = [replace(photo, is_test=None) for photo in photos]
    elif extra := {p.class_name for p in photos if p.is_test} - {p.class_name for p in photos if not p.is_test}:
        raise ValueError(
            f"class {min(extra)!r} is in {test} but not in {train}; remove it there, or give {train} alone"
        )
    return photos_to_source(
        name or path.resolve().name,
        path,
        photos,
        renamed=renamed,
        test_fraction=test_fraction,
        split_seed=split_seed,
        told=_told(path, photos, train, test),
    )


def _parts(path: Path, layout: str) -> tuple[Path, Path | None]:
    """Return the folder to learn from and the one to test on, if there is one.

    Raises:
        ValueError: parts are beside other folders, or only a test part is there.
    """
    folders = folder_names(path)
    found = {part: path / name for name in folders if (part := alike(name)) in PARTS and not _has_images(path / name)}
    train, test = (next((found[p] for p in parts if p in found), None) for parts in (TRAIN_PARTS, TEST_PARTS))
    whole = len(found) == len(folders) and not all(part in found for part in TRAIN_PARTS)
    if whole and train is not None:
        return train, test
    if not found or layout != "auto":
        return path, None
    others = [name for name in folders if path / name not in found.values()]
    beside = f"beside {', '.join(others[:3])}" if others else "but none to learn from, train/"
    parts = ", ".join(f"{place.name}/" for place in found.values())
    raise ValueError(
        f"{path} has {parts} {beside}, so it is not clear what its folders are: give the folder that holds the "
        "classes, or --layout classes if each folder is a class"
    )


def _told(path: Path, photos: Sequence[Photo], train: Path, test: Path | None) -> tuple[str, ...]:
    """Say what the folders were taken as, and how many files are no images."""
    domains = len({photo.domain for photo in photos if photo.domain is not None})
    form = "DOMAIN/CLASS/image" if domains else "CLASS/image"
    below = "" if train == path else f" below {train.name}/"
    tests = "" if test is None else f", {test.name}/ is the test part"
    ignored = Counter(
        file.suffix.lower() or file.name
        for file in _files(path)
        if not _is_image(file.name) and not file.name.startswith(".")
    )
    counted = ", ".join(f"{count} {ending}" for ending, count in ignored.most_common(5))
    left_out = [f"left out, no images: {many(sum(ignored.values()), 'file')} ({counted})"] if ignored else []
    return (f"read as {form}{below}{tests}", *left_out)


def photos_to_source(
    name: str,
    root: Path,
    photos: Sequence[Photo],
    *,
    class_names: Sequence[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    told: Sequence[str] = (),
) -> Source:
    """A Source of these files; their keys are their paths relative to the root.

    Args:
        name: of the data set.
        root: the folder that keys are relative to.
        photos: the images.
        class_names: in the order of the class ids; sorted by name where left out.
        renamed: class name -> the name people should see; ids stay as they are.
        test_fraction: as in `load_folder`.
        split_seed: as in `load_folder`.
        told: how they were found, in lines for people.

    Raises:
        ValueError: as `load_folder`, or a name is not UTF-8.
    """
    names = sorted({photo.class_name for photo in photos}) if class_names is None else class_names
    keys = [Path(os.path.relpath(photo.path, root)).as_posix() for photo in photos]
    _check_utf8([*keys, *names])
    ids = {class_name: i for i, class_name in enumerate(names)}
    domain_names = sorted({photo.domain for photo in photos if photo.domain is not None})
    split_given = bool(photos) and photos[0].is_test is not None
    data = ImageSet(
        Files([photo.path for photo in photos]),
        torch.tensor([ids[photo.class_name] for photo in photos], dtype=torch.int64),
        keys,
    )
    source = divide(
        name,
        data,
        [(renamed or {}).get(class_name, class_name) for class_name in names],
        is_test=torch.tensor([bool(photo.is_test) for photo in photos]) if split_given else None,
        domains=torch.tensor([domain_names.index(p.domain) for p in photos if p.domain]) if domain_names else None,
        domain_names=domain_names,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    return replace(source, told=tuple(told))


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


def list_images(path: Path) -> list[Path]:
    """All image files below a folder, at any depth, sorted; every file once.

    A link to a file is followed, a link to a folder is not.

    Raises:
        ValueError: there are none.
    """
    images: dict[Path, Path] = {}
    others: set[str] = set()
    for file in _files(path):
        if _is_image(file.name):
            images.setdefault(file.resolve(), file)
        else:
            others.add(file.suffix.lower() or file.name)
    if not images:
        found = f" (only {', '.join(sorted(others)[:5])} files)" if others else ""
        known = ", ".join(image_endings())
        raise ValueError(f"class folder {path} has no images{found}; remove it or add {known} files")
    return sorted(images.values())


def _files(path: Path) -> Iterator[Path]:
    """Yield all files below a folder, without those in folders that `_is_left` names. Links to folders are no files."""
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not _is_left(name))
        yield from (Path(folder, file) for file in sorted(files))


def _is_image(file: str) -> bool:
    return Path(file).suffix.lower() in image_endings() and not file.startswith(".")


def _is_left(folder: str) -> bool:
    """Whether a folder is hidden, or left behind by a system."""
    return folder.startswith(".") or folder in LEFT_BY_SYSTEMS


def _has_images(path: Path) -> bool:
    """Whether a folder holds images itself."""
    return any(_is_image(entry.name) for entry in path.iterdir())


def _check_utf8(names: Sequence[str]) -> None:
    """Raise ValueError where the system could not decode a name: no file of ours could hold it."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the name {os.fsencode(name)} is not UTF-8; rename the file or folder") from None


def _photos(path: Path, layout: str, is_test: bool) -> list[Photo]:
    folders = folder_names(path)
    if not folders:
        found = "images that lie directly in it" if _has_images(path) else "no class folders"
        raise ValueError(f"{path} has {found}; every class needs a folder of its own, as class/image.jpg")
    if layout != "domains":
        return [
            Photo(image, normal_name(name), None, is_test) for name in folders for image in list_images(path / name)
        ]
    return [
        Photo(image, normal_name(name), normal_name(domain), is_test)
        for domain in folders
        for name in folder_names(path / domain)
        for image in list_images(path / domain / name)
    ]


def _check_clear(parts: Sequence[Path]) -> None:
    """Raise ValueError where no folder in any part holds images itself, but only folders, which may be the classes."""
    folders = [part / name for part in parts for name in folder_names(part)]
    inner = [(folder, name) for folder in folders for name in folder_names(folder)]
    if inner and not any(map(_has_images, folders)):
        folder, name = inner[0]
        raise ValueError(
            f"the folders of {parts[0]} hold no images themselves, only folders such as {folder.name}/{name}: give the "
            f"layout 'classes' if '{folder.name}' is a class, the layout 'domains' if '{name}' is a class and "
            f"'{folder.name}' a domain (--layout, or scenario.layout of a run), or give {folder} alone"
        )
