"""Folders whose samples have boxes or masks instead of classes: their usual layouts, told before they are misread."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lamella.data.decoding import image_endings
from lamella.data.names import alike
from lamella.data.one_class import BOXES, MASKS
from lamella.data.sources.files import PARTS, all_files, folder_names

__all__ = ["check_layout"]

PICTURES = frozenset({"images", "image", "imgs", "img", "jpegimages", "rgb"})
"""The usual names of a folder of pictures beside their labels, in small letters."""
MASKED = frozenset(
    {
        "masks",
        "mask",
        "labels",
        "annotations",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "gt",
        "ground_truth",
    }
)
"""The usual names of a folder of masks."""
LOOK = 1 << 20
"""So many bytes of the beginning and the end of a file of JSON are looked at."""
FEW = 20
"""So many files of a folder are looked at."""
BOX = re.compile(r"\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}", re.IGNORECASE)
"""A line of a class and a box, or a polygon."""


def check_layout(path: Path) -> None:
    """Make sure that a folder is none of boxes or masks.

    Args:
        path: of the folder.

    Raises:
        ValueError: it is one of COCO's, YOLO's or Pascal VOC's layout, or of pictures beside masks.
    """
    for folder in (path, *(path / name for name in folder_names(path) if alike(name) in PARTS)):
        said = _boxes(folder) or _masks(folder)
        if said:
            raise ValueError(f"{said}; where each folder of {path} is a class all the same, say --layout classes")


def _boxes(folder: Path) -> str:
    """Return what of a folder shows that its pictures have boxes; "" where nothing does."""
    inside = {alike(name): folder / name for name in folder_names(folder)}
    listed = [file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".json" and file.is_file()][:FEW]
    for file in (*listed, *(_some(inside["annotations"], (".json",)) if "annotations" in inside else ())):
        if _is_coco(file):
            return f"'{file}' lists objects in the form of COCO; {BOXES}"
    if "annotations" in inside:
        for file in _some(inside["annotations"], (".xml",)):
            if b"<bndbox" in file.read_bytes()[:LOOK]:
                return f"'{file}' holds boxes in the form of Pascal VOC; {BOXES}"
    if "labels" in inside and inside.keys() & PICTURES:
        for file in _some(inside["labels"], (".txt",)):
            lines = file.read_bytes()[:LOOK].decode(errors="replace").split("\n")
            if lines[0].strip() and BOX.fullmatch(lines[0].strip()):
                return f"'{file}' holds boxes in the form of YOLO; {BOXES}"
    return ""


def _masks(folder: Path) -> str:
    """Return what of a folder shows that its pictures have masks; "" where nothing does."""
    inside = {alike(name): folder / name for name in folder_names(folder)}
    for pictures in PICTURES & inside.keys():
        for masks in sorted(MASKED & inside.keys()):
            have = {_stem(file) for file in _files(inside[pictures], image_endings())}
            of = [_stem(file) for file in _some(inside[masks], image_endings())]
            if of and sum(stem in have for stem in of) > len(of) / 2:
                return f"'{inside[masks]}' holds a mask for each picture of '{inside[pictures]}'; {MASKS}"
    return ""


def _is_coco(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(LOOK)
        opened.seek(max(len(head), file.stat().st_size - LOOK))
        found = head + opened.read()
    return b'"annotations"' in found and (b'"bbox"' in found or b'"segmentation"' in found)


def _stem(file: Path) -> str:
    """Return the name of a picture, without what names of masks have at their end."""
    return re.sub(r"[-_ ](mask|label|labels|seg|gt)$", "", file.stem, flags=re.IGNORECASE)


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of these endings below a folder, at any depth."""
    return (file for file in all_files(folder) if file.suffix.lower() in endings)


def _some(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the first of them."""
    return list(islice(_files(folder, endings), FEW))
