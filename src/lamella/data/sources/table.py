"""Images listed in a file of rows: `path,label`, optionally `split` and `domain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamella.common.checks import did_you_mean
from lamella.common.printable import printable
from lamella.data.decoding import image_endings
from lamella.data.names import alike, normal_name
from lamella.data.one_class import check_single_labels, columns_hint, several_labels
from lamella.data.scenario import Source
from lamella.data.sources.files import PARTS, LabelledFile, used_parts
from lamella.data.sources.image_files import images_to_source
from lamella.data.sources.rows import Row, Rows

__all__ = ["load_image_table"]

OPTIONAL = ("split", "domain")
SHOWING = 1000  # so many rows show what the columns hold


def load_image_table(
    rows: Rows,
    *,
    name: str | None = None,
    image: str = "path",
    label: str = "label",
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Load the images that a table lists; classes are its labels, sorted by name.

    It has a column of paths (absolute, or relative to the table) and one of labels, and where wanted `split` ("train",
    "test" or "val") and `domain`. Other columns are not read. As in folders, "val" is the test part where there is no
    "test", and is left alone where there is.

    Args:
        rows: of the table.
        name: of the data set; the file's name where left out.
        image: the column of the paths.
        label: the column of the labels.
        test_fraction: of each class to hold out for testing where there is no split column.
        split_seed: of that split.

    Raises:
        ValueError: a column or value is missing or wrong; the message names the line.
        FileNotFoundError: an image is missing; the message names the line.
    """
    path = rows.path
    _check_columns(rows, image, label)
    files: list[LabelledFile] = []
    places: dict[Path, str] = {}
    for row in rows.rows:
        file = _file(rows, row, image, label)
        if file.path in places:
            raise ValueError(
                f"{path}, {row.place}: {file.path} is already listed in {places[file.path]}"
                + (columns_hint(rows.columns, (), "image") or _other_label(files, file))
            )
        places[file.path] = row.place
        files.append(file)
    if not files:
        raise ValueError(f"{path} lists no images")
    labels = zip((f"{path}, {place}" for place in places.values()), (file.class_name for file in files), strict=True)
    check_single_labels(labels, label, "image")
    used = used_parts([str(row.cells.get("split", "")) for row in rows.rows])
    return images_to_source(
        name or path.stem,
        path.parent,
        [file for file, is_used in zip(files, used, strict=True) if is_used],
        test_fraction=test_fraction,
        split_seed=split_seed,
        told=rows.told,
    )


def _check_columns(rows: Rows, *required: str) -> None:
    columns = rows.columns
    rows.check_once((*required, *OPTIONAL))
    for column in required:
        if column not in columns:
            found = ", ".join(map(printable, columns)) or "nothing"
            raise ValueError(
                f"{rows.heading}: no column {column!r}{did_you_mean(column, columns)}; "
                f"the first line must name the columns {' and '.join(required)} (and optionally split and domain), "
                f"but it has {found}{columns_hint(columns, [row.cells for row in rows.rows[:SHOWING]], 'image')}"
            )


def _other_label(files: Sequence[LabelledFile], again: LabelledFile) -> str:
    """Say what serves where an image is listed once more under another label; "" where it has the same one."""
    once = next(file for file in files if file.path == again.path)
    return "" if once.class_name == again.class_name else f" under another label; {several_labels('image')}"


def _file(rows: Rows, row: Row, image: str, label: str) -> LabelledFile:
    where = f"{rows.path}, {row.place}"
    cells = {column: _cell(row.cells.get(column)) for column in (image, label, *OPTIONAL) if column in rows.columns}
    for column, cell in cells.items():
        if not cell:
            raise ValueError(f"{where}: the {column} is empty")
    path = rows.path.parent / cells[image]
    if path.suffix.lower() not in image_endings():
        raise ValueError(f"{where}: {cells[image]!r} is not a supported image; one of {', '.join(image_endings())}")
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no such image: {path}")
    split = cells.get("split")
    if split is not None and alike(split) not in PARTS:
        raise ValueError(f"{where}: the split {split!r} is unknown; use one of {', '.join(PARTS)}")
    domain = cells.get("domain")
    return LabelledFile(
        path,
        normal_name(cells[label]),
        None if domain is None else normal_name(domain),
        None if split is None else PARTS[alike(split)],
    )


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()
