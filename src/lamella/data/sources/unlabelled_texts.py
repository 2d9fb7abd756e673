"""Texts without labels: the column of a file of rows, .txt files, and folders of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lamella.common.checks import did_you_mean
from lamella.data.sources.rows import AS_TEXT, ROWS, decoded, read_rows
from lamella.data.sources.text_table import TEXTS, column_of
from lamella.data.tasks import Unreadable
from lamella.data.texts import normal_text

__all__ = ["PlacedText", "read_texts", "without_empty"]


class PlacedText(NamedTuple):
    """A text, and where it stands.

    Attributes:
        text: in its usual form.
        place: the file, and the line or the row of it; "" for a text that stands in no file.
    """

    text: str
    place: str = ""


def read_texts(path: Path, column: str | None = None) -> list[PlacedText]:
    """Read the texts of a file or a folder.

    Args:
        path: a file of rows, a `.txt` file, which is one text, or a folder of `.txt` files.
        column: the column of the texts in a file of rows; one of the usual names where left out.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is none of these, is no UTF-8 text, or has no such column; or a folder holds no text.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.txt") if file.is_file())
        if not files:
            raise ValueError(f"'{path}' holds no .txt file")
        return [text for file in files for text in read_texts(file)]
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder '{path}'; for a text itself use --text")
    if path.suffix.lower() == ".txt":
        return [PlacedText(normal_text(decoded(path.read_bytes(), str(path))), str(path))]
    if path.suffix.lower() in ROWS:
        return list(_of_rows(path, column))
    raise ValueError(f"'{path}' holds no texts; give a .txt file or one of {', '.join(ROWS)}")


def _of_rows(path: Path, column: str | None) -> Iterator[PlacedText]:
    rows = read_rows(path)
    chosen = column or column_of(rows.columns, TEXTS)
    if chosen not in rows.columns:
        asked = f" {column!r}{did_you_mean(column, rows.columns)}" if column else " of texts"
        raise ValueError(
            f"{rows.heading}: no column{asked}; its columns are {', '.join(rows.columns)}: name one with --column"
        )
    rows.check_once([chosen])
    for row in rows.rows:
        cell = row.cells.get(chosen)
        if cell is not None and not isinstance(cell, str) and cell == cell:  # only NaN, an empty cell, is not itself
            kind = type(cell).__name__
            raise ValueError(f"{path}, {row.place}: the text is {kind} {str(cell)[:20]!r}; {AS_TEXT}")
        yield PlacedText(normal_text(cell if isinstance(cell, str) else ""), f"{path}, {row.place}")


def without_empty(texts: Sequence[PlacedText]) -> tuple[list[PlacedText], list[Unreadable]]:
    """Return the texts that say something, and the places of the others."""
    kept = [text for text in texts if text.text]
    return kept, [Unreadable(text.place or "a text", "it is empty") for text in texts if not text.text]
