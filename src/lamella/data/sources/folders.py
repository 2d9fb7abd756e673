"""Image folders: `class/*.jpg`, the same under `train/` and `test/`, or `domain/class/*.jpg`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lamella.data.images import Files, ImageSet
from lamella.data.scenario import Source
from lamella.data.sources.parts import divide

__all__ = ["EXTENSIONS", "Photo", "folder_names", "list_images", "load_folder", "photos_to_source"]

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TEST_PARTS = ("test", "val", "valid", "validation")
LAYOUTS = ("auto", "classes", "domains")


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
    alone. Without them a split is made from the files' relative paths.

    Args:
        path: of the folder.
        name: of the data set; the folder's name where left out.
        layout: "classes" (`class/` with images at any depth), "domains" (`domain/class/`), or "auto".
        renamed: folder name -> class name, for folders called by an identifier.
        test_fraction: of each class to hold out for testing where there is no test part.
        split_seed: of that split.

    Raises:
        ValueError: there are no images, a class folder is empty, or the parts do not fit together.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; one of {', '.join(LAYOUTS)}")
    folders = folder_names(path)
    test_part = next((part for part in TEST_PARTS if part in folders), None)
    if "train" in folders and test_part and set(folders) <= {"train", *TEST_PARTS}:
        layout = _layout(path / "train") if layout == "auto" else layout
        photos = [*_photos(path / "train", layout, False), *_photos(path / test_part, layout, True)]
        if extra := {p.class_name for p in photos if p.is_test} - {p.class_name for p in photos if not p.is_test}:
            raise ValueError(f"class {min(extra)!r} is in {path / test_part} but not in {path / 'train'}")
    else:
        photos = _photos(path, _layout(path) if layout == "auto" else layout, None)
    return photos_to_source(
        name or path.resolve().name,
        path,
        photos,
        renamed=renamed,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )


def photos_to_source(
    name: str,
    root: Path,
    photos: Sequence[Photo],
    *,
    class_names: Sequence[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
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
    return divide(
        name,
        data,
        [(renamed or {}).get(class_name, class_name) for class_name in names],
        is_test=torch.tensor([bool(photo.is_test) for photo in photos]) if split_given else None,
        domains=torch.tensor([domain_names.index(p.domain) for p in photos if p.domain]) if domain_names else None,
        domain_names=domain_names,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )


def folder_names(path: Path) -> list[str]:
    """The folders in a folder, sorted by name; hidden ones are left out."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_images(path: Path) -> list[Path]:
    """All image files below a folder, at any depth, sorted; links are followed.

    Raises:
        ValueError: there are none.
    """
    images: list[Path] = []
    others: set[str] = set()
    for folder, _, files in os.walk(path, followlinks=True):
        for file in files:
            suffix = Path(file).suffix.lower()
            if suffix in EXTENSIONS and not file.startswith("."):
                images.append(Path(folder, file))
            else:
                others.add(suffix or file)
    if not images:
        found = f" (only {', '.join(sorted(others)[:5])} files)" if others else ""
        raise ValueError(f"class folder {path} has no images{found}; remove it or add {', '.join(EXTENSIONS)} files")
    return sorted(images)


def _check_utf8(names: Sequence[str]) -> None:
    """Raise ValueError where the system could not decode a name: no file of ours could hold it."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the name {os.fsencode(name)} is not UTF-8; rename the file or folder") from None


def _photos(path: Path, layout: str, is_test: bool | None) -> list[Photo]:
    folders = folder_names(path)
    if not folders:
        loose = any(entry.suffix.lower() in EXTENSIONS for entry in path.iterdir())
        found = "images that lie directly in it" if loose else "no class folders"
        raise ValueError(f"{path} has {found}; every class needs a folder of its own, as class/image.jpg")
    if layout == "classes":
        return [Photo(image, name, None, is_test) for name in folders for image in list_images(path / name)]
    return [
        Photo(image, name, domain, is_test)
        for domain in folders
        for name in folder_names(path / domain)
        for image in list_images(path / domain / name)
    ]


def _layout(path: Path) -> str:
    """ "domains" where no first-level folder holds images itself, but its folders do, under more than one name."""
    folders = folder_names(path)
    if any(entry.suffix.lower() in EXTENSIONS for name in folders for entry in (path / name).iterdir()):
        return "classes"
    inner = [folder_names(path / name) for name in folders]
    shared = set(inner[0]).intersection(*inner) if inner else set()
    return "domains" if len(folders) > 1 and len(shared) > 1 else "classes"
