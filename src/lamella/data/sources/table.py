"""Data sets listed in a CSV (or TSV) file: `path,label`, optionally `split` and `domain`."""

import csv
from collections.abc import Iterator
from pathlib import Path

from lamella.common.checks import did_you_mean
from lamella.data.decoding import image_endings
from lamella.data.names import alike, normal_name
from lamella.data.scenario import Source
from lamella.data.sources.folders import PARTS, Photo, photos_to_source

__all__ = ["load_table"]

REQUIRED = ("path", "label")
OPTIONAL = ("split", "domain")


def load_table(path: Path, *, name: str | None = None, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """Load the images that a table lists; classes are its labels, sorted by name.

    The first line names the columns: `path` (absolute, or relative to the table) and `label`, and where wanted `split`
    ("train", "test" or "val") and `domain`. Other columns are not read. As in folders, "val" is the test part where
    there is no "test", and is left alone where there is.

    Args:
        path: of the file; `.tsv` is separated by tabs, anything else by commas.
        name: of the data set; the file's name where left out.
        test_fraction: of each class to hold out for testing where there is no split column.
        split_seed: of that split.

    Raises:
        ValueError: a column or value is missing or wrong; the message names the line.
        FileNotFoundError: an image is missing; the message names the line.
    """
    photos: list[Photo] = []
    parts: list[str] = []
    lines: dict[Path, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, row in _rows(path, file):
                photo = _photo(path, line, row)
                if photo.path in lines:
                    raise ValueError(f"{path}, line {line}: {photo.path} is already listed in line {lines[photo.path]}")
                lines[photo.path] = line
                photos.append(photo)
                parts.append(alike(row.get("split", "")))
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path} is not UTF-8 text: {fault.reason}") from fault
    if not photos:
        raise ValueError(f"{path} lists no images")
    if {"test", "testing"} & set(parts):
        photos = [p for p, part in zip(photos, parts, strict=True) if part not in ("val", "valid", "validation")]
    source = photos_to_source(
        name or path.stem, path.parent, photos, test_fraction=test_fraction, split_seed=split_seed
    )
    return source


def _rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", skipinitialspace=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    if twice := [column for column in columns if columns.count(column) > 1 and column in (*REQUIRED, *OPTIONAL)]:
        raise ValueError(f"{path}, line 1: two columns are called {twice[0]!r}; rename or remove one of them")
    for column in REQUIRED:
        if column not in columns:
            found = ", ".join(columns) or "nothing"
            raise ValueError(
                f"{path}, line 1: no column {column!r}{did_you_mean(column, columns)}; "
                "the first line must name the columns path and label (and optionally split and domain), "
                f"but it has {found}"
            )
    reader.fieldnames = columns
    try:
        for row in reader:
            yield reader.line_num, {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    except csv.Error as fault:
        raise ValueError(f"{path}, line {reader.line_num}: {fault}") from fault


def _photo(table: Path, line: int, row: dict[str, str]) -> Photo:
    for column in ("path", "label", "split", "domain"):
        if column in row and not row[column]:
            raise ValueError(f"{table}, line {line}: the {column} is empty")
    image = table.parent / row["path"]
    if image.suffix.lower() not in image_endings():
        raise ValueError(
            f"{table}, line {line}: {row['path']!r} is not a supported image; one of {', '.join(image_endings())}"
        )
    if not image.is_file():
        raise FileNotFoundError(f"{table}, line {line}: no such image: {image}")
    split = row.get("split")
    if split is not None and alike(split) not in PARTS:
        raise ValueError(f"{table}, line {line}: the split {split!r} is unknown; use one of {', '.join(PARTS)}")
    domain = row.get("domain")
    return Photo(
        image,
        normal_name(row["label"]),
        None if domain is None else normal_name(domain),
        None if split is None else PARTS[alike(split)],
    )
