"""Samples that somebody points at, to take them out of a model or to correct what they were learned as."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lamella.common.checks import did_you_mean
from lamella.data.images import Files, ImageSet
from lamella.data.keeping import content_digest, keep_readable
from lamella.data.loading import Examples
from lamella.data.names import normal_name
from lamella.data.sources.files import list_images
from lamella.data.sources.load import PATH_COLUMN
from lamella.data.sources.readable import load_readable
from lamella.data.sources.rows import ROWS, Row, Rows, read_rows
from lamella.data.sources.text_table import LABELS, TEXTS, column_of
from lamella.data.sources.unlabelled_texts import PlacedText, read_texts, without_empty
from lamella.data.texts import TextSet, normal_text

__all__ = ["RIGHT", "Corrections", "Pointed", "pointed_at", "read_corrections"]

RIGHT = "right"
"""The column of the right labels."""


class Pointed(NamedTuple):
    """Samples of any class.

    Attributes:
        data: the samples, without labels.
        digests: the digest of the content of each; see `data.keeping.Readable`.
        places: where each stands, for messages.
    """

    data: Examples
    digests: tuple[int, ...]
    places: tuple[str, ...]


class Corrections(NamedTuple):
    """Samples that were learned as a wrong class.

    Attributes:
        samples: the samples.
        labels: the name of the class that each was learned as.
        right: the name of the class that each is of.
    """

    samples: Pointed
    labels: tuple[str, ...]
    right: tuple[str, ...]


def pointed_at(paths: Sequence[Path], noun: str, *, text: str | None = None) -> Pointed:
    """Find the samples that paths name, each once.

    Args:
        paths: of images: image files, folders of them at any depth, tables with a column `path`, and `.npz` archives;
            of texts: tables, `.txt` files and folders of these.
        noun: what a sample is, "image" or "text".
        text: the column of the texts in tables; one of the usual names where left out.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file holds no samples of this kind, or one cannot be read; or this kind has no classes.
    """
    _check_classes(noun)
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no file or folder '{path}'")
    if noun == "text":
        return _of_texts([found for path in paths for found in read_texts(path, text)])
    if text is not None:
        raise ValueError(f"--text {text} names a column of texts, and this model learns from {noun}s; leave it out")
    archives = [path for path in paths if path.suffix.lower() == ".npz"]
    if archives and len(paths) > 1:
        raise ValueError(f"give the archive '{archives[0]}' alone, and the other paths in a command of their own")
    return _of_archive(archives[0]) if archives else _of_images([file for path in paths for file in _files(path)])


def read_corrections(path: Path, noun: str, *, text: str | None = None, label: str | None = None) -> Corrections:
    """Read a table of samples with wrong labels: as one that is learned, with one more column, `right`.

    Args:
        path: of the table.
        noun: what a sample is, "image" or "text".
        text: the column of the texts; one of the usual names where left out.
        label: the column of the labels that they were learned as; one of the usual names where left out.

    Raises:
        FileNotFoundError: there is no such table, or no image that it lists.
        ValueError: a column or a cell is missing or wrong, and the message names the line; or this kind has no classes.
    """
    _check_classes(noun)
    if path.suffix.lower() not in ROWS:
        raise ValueError(f"'{path}' is no table of corrections; give a file of rows, {', '.join(ROWS)}")
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}'")
    rows = read_rows(path)
    samples = _column(rows, text or (PATH_COLUMN if noun == "image" else column_of(rows.columns, TEXTS)), f"{noun}s")
    was = _column(rows, label or column_of(rows.columns, LABELS), "the labels that they were learned as")
    _column(rows, RIGHT, "the right labels")
    if not rows.rows:
        raise ValueError(f"{path} has no rows below the names of its columns")
    pairs = [(normal_name(_cell(rows, row, was)), normal_name(_cell(rows, row, RIGHT))) for row in rows.rows]
    for row, (old, new) in zip(rows.rows, pairs, strict=True):
        if old == new:
            raise ValueError(f"{path}, {row.place}: the right label is '{old}' too; leave out what was right")
    cells = [PlacedText(_cell(rows, row, samples), f"{path}, {row.place}") for row in rows.rows]
    found = (
        _of_images([_listed(path, cell) for cell in cells], once=False) if noun == "image" else _of_texts(cells, False)
    )
    places = tuple(cell.place for cell in cells)
    seen: dict[int, str] = {}
    for place, digest in zip(places, found.digests, strict=True):
        if (first := seen.setdefault(digest, place)) != place:
            raise ValueError(f"{place}: this {noun} stands in {first} already; each can be corrected once")
    old, new = zip(*pairs, strict=True)
    return Corrections(found._replace(places=places), old, new)


def _check_classes(noun: str) -> None:
    if noun not in ("image", "text"):
        raise ValueError("this model writes answers and knows no classes; what it was taught cannot be taken out")


def _files(path: Path) -> Iterator[Path]:
    """Yield the image files that a path names."""
    if path.is_dir():
        try:
            yield from list_images(path)
        except ValueError:  # speaks of a class to learn
            raise ValueError(f"folder '{path}' has no images; give another one, or image files") from None
    elif path.suffix.lower() in ROWS:
        rows = read_rows(path)
        column = _column(rows, PATH_COLUMN, "images")
        yield from (_listed(path, PlacedText(_cell(rows, row, column), f"{path}, {row.place}")) for row in rows.rows)
    else:
        yield path


def _listed(table: Path, cell: PlacedText) -> Path:
    """Return the image that a cell of a table names."""
    path = table.parent / cell.text
    if not path.is_file():
        raise FileNotFoundError(f"{cell.place}: no such image: {path}")
    return path


def _of_images(files: Sequence[Path], *, once: bool = True) -> Pointed:
    found = keep_readable(ImageSet.unlabelled(Files(files)))
    if found.unreadable:
        first = found.unreadable[0]
        raise ValueError(f"'{files[int(first.key)]}' cannot be read: {first.reason}; leave it out")
    pointed = Pointed(found.data, tuple(found.digests.tolist()), tuple(map(str, files)))
    return _each_once(pointed) if once else pointed


def _of_archive(path: Path) -> Pointed:
    found = load_readable(path)
    parts = [part for part in (found.whole.train, found.whole.test) if len(part)]
    data = parts[0].concatenate(parts[1:])
    return _each_once(Pointed(data, tuple(found.digests[key] for key in data.keys), tuple(data.keys)))


def _of_texts(texts: Sequence[PlacedText], once: bool = True) -> Pointed:
    usual = [PlacedText(normal_text(text.text), text.place) for text in texts]
    if empty := without_empty(usual)[1]:
        raise ValueError(f"{empty[0].key}: the text is empty; leave it out")
    digests = tuple(content_digest(text.text.encode()) for text in usual)
    pointed = Pointed(TextSet.unlabelled([text.text for text in usual]), digests, tuple(text.place for text in usual))
    return _each_once(pointed) if once else pointed


def _each_once(pointed: Pointed) -> Pointed:
    first = {digest: i for i, digest in reversed(list(enumerate(pointed.digests)))}
    kept = sorted(first.values())
    places = tuple(pointed.places[i] for i in kept)
    return Pointed(pointed.data.subset(kept), tuple(pointed.digests[i] for i in kept), places)


def _column(rows: Rows, wanted: str | None, what: str) -> str:
    """Return the name of a column that must be there."""
    if wanted is None or wanted not in rows.columns:
        named = f" '{wanted}'" if wanted else ""
        near = did_you_mean(wanted, rows.columns) if wanted else ""
        has = ", ".join(rows.columns) or "nothing"
        raise ValueError(f"{rows.heading}: no column{named} of {what}{near}; its columns are {has}")
    rows.check_once([wanted])
    return wanted


def _cell(rows: Rows, row: Row, column: str) -> str:
    value: Any = row.cells.get(column)
    if row.beyond or not isinstance(value, str | int | float) or value != value or not str(value).strip():
        said = "more cells than columns" if row.beyond else f"the cell of the column '{column}' is empty"
        hint = "; to take a sample out altogether there is lamella remove" if column == RIGHT else ""
        raise ValueError(f"{rows.path}, {row.place}: {said}{hint}")
    names = rows.names.get(column, [])
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)
