"""The rows of CSV, TSV, JSON and Parquet files, each with the place where it stands, so that messages can name it."""

import codecs
import csv
import io
import json
import re
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lamella.common.checks import first_line
from lamella.common.words import count
from lamella.data.one_class import BOXES

__all__ = ["AS_TEXT", "ROWS", "Row", "Rows", "STDIN", "decoded", "lines_of", "parse_rows", "read_rows"]

ROWS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
"""The endings of files of rows."""
AS_TEXT = "write it as a text: in quotes in JSON, as a column of strings in Parquet"
"""What to do with a cell that should hold a text."""
MANY_LINES = 200  # a cell with more line ends than this has probably swallowed other rows
MOST_COLUMNS = 1000  # each row is filled up to all columns, so that a small file of many would become a large table
BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
STDIN = "stdin"
"""What stands in the place of a file's name where texts come from the standard input."""
A_ROW = '{"text": "Where is my parcel?", "label": "delivery"}'
"""A row as an example in messages."""
LINE_END = re.compile(r"\r\n|\r|\n")


class Row(NamedTuple):
    """One row.

    Attributes:
        place: where it stands in its file, such as "line 3".
        cells: its values by column. Those of CSV and TSV files are texts without white space around them.
        beyond: how many cells that are not empty stand after those that have a column.
    """

    place: str
    cells: dict[str, Any]
    beyond: int = 0


@dataclass(frozen=True)
class Rows:
    """The rows of a file.

    Attributes:
        path: of the file.
        columns: the names of its columns.
        rows: in the order of the file.
        names: the names of the values of columns that hold numbers instead of them, by column.
        told: what looks wrong in the file, in lines for people.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    names: dict[str, list[str]] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """Where the names of the columns stand, for messages."""
        return f"{self.path}, line 1" if self.path.suffix.lower() in (".csv", ".tsv") else str(self.path)

    def check_once(self, columns: Collection[str | None]) -> None:
        """Refuse a file in which one of some columns comes twice, so that one would hide the other.

        Args:
            columns: the names of those that are read; None for one that is not there.

        Raises:
            ValueError: a column comes twice.
        """
        if twice := [name for name in self.columns if name in columns and self.columns.count(name) > 1]:
            raise ValueError(f"{self.heading}: two columns are called {twice[0]!r}; rename or remove one of them")


def read_rows(path: Path) -> Rows:
    """Read a `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet` file.

    The first line of a CSV or TSV file names its columns. A line of a JSONL file is an object, and so is each item of
    the list that a JSON file holds. The text of a file is UTF-8.

    Args:
        path: of the file.

    Raises:
        ValueError: the file cannot be read as what its ending says; the message names the line.
        RuntimeError: a package that reads Parquet is missing.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    return parse_rows(path, path.read_bytes())


def parse_rows(path: Path, content: bytes) -> Rows:
    """Read the content of a file as `read_rows` does, but for Parquet.

    Args:
        path: of the file; its ending says what it holds.
        content: the bytes of the file.

    Raises:
        ValueError: as `read_rows`.
    """
    text = decoded(content, str(path))
    ending = path.suffix.lower()
    if ending == ".jsonl":
        return _objects(path, ((f"line {i}", _json(line, path, i)) for i, line in _lines(text)))
    if ending == ".json":
        found = _json(text, path, 1)
        if isinstance(found, dict) and "annotations" in found:
            raise ValueError(f"{path} lists objects in the form of COCO; {BOXES}")
        if not isinstance(found, list):
            raise ValueError(f"{path} holds no list of rows; write [{{...}}, {{...}}], or one row a line as .jsonl")
        return _objects(path, ((f"row {i}", row) for i, row in enumerate(found, 1)))
    return _separated(path, text, "\t" if ending == ".tsv" else ",")


def decoded(content: bytes, name: str) -> str:
    """Return the text of UTF-8 bytes, without a byte order mark.

    Args:
        content: the bytes.
        name: of the file, for messages.

    Raises:
        ValueError: the bytes are not UTF-8, or there is a NUL among them; the message names the line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        before = fault.object[: fault.start].decode("latin-1")
        raise ValueError(f"{name}, {_line_after(before)}: {_not_utf8(content, name)}") from fault
    if (place := text.find("\0")) >= 0:
        raise ValueError(f"{name}, {_line_after(text[:place])}: a NUL character, which no text has; remove it")
    return text


def lines_of(text: str) -> list[str]:
    """Part a text at its line ends, and not at other signs that may stand within a line, such as a form feed.

    >>> lines_of("one\\r\\ntwo\\f2\\n")
    ['one', 'two\\x0c2', '']
    """
    return LINE_END.split(text)


def _not_utf8(content: bytes, name: str) -> str:
    """Say how to convert a file that is not UTF-8."""
    if content[:2] not in BOMS and b"\0" in content:
        return "not text but binary data; give a table such as CSV or JSON lines"
    was, file = "UTF-16" if content[:2] in BOMS else "LATIN1", Path(name).name
    if name == STDIN:
        return f"not UTF-8 text; convert it on the way, for example by iconv -f {was} -t UTF-8 | lamella ..."
    return f"not UTF-8 text; convert the file, for example by iconv -f {was} -t UTF-8 '{file}' > 'utf8-{file}'"


def _line_after(before: str) -> str:
    return f"line {len(LINE_END.findall(before)) + 1}"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    return ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())


def _json(text: str, path: Path, line: int) -> Any:
    """Return what a JSON text holds that begins in this line of its file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        where = f"{path}, line {line + fault.lineno - 1}, column {fault.colno}"
        raise ValueError(f"{where}: not JSON: {fault.msg}; a row is an object such as {A_ROW}") from fault
    except (RecursionError, ValueError):
        raise ValueError(f"{path}, line {line}: lists are nested too deeply, or a number is too long") from None


def _objects(path: Path, found: Iterator[tuple[str, Any]]) -> Rows:
    rows: list[Row] = []
    columns: dict[str, None] = {}
    for place, cells in found:
        if not isinstance(cells, dict):
            kind = {list: "a list", str: "a text", type(None): "null"}.get(type(cells), "a number")
            raise ValueError(f"{path}, {place}: {kind} and no row; a row is an object of columns and values")
        rows.append(Row(place, cells))
        columns |= dict.fromkeys(cells)
        _check_width(path, place, len(columns))
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return Rows(path, tuple(columns), rows)


def _separated(path: Path, text: str, delimiter: str) -> Rows:
    """Return the rows of a table whose cells stand between commas or tabs."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    header: list[str] = []
    rows: list[Row] = []
    told: list[str] = []
    begins = first = 1  # the lines that this row and the next one begin in
    try:
        for cells in reader:
            begins, first = first, reader.line_num + 1
            place = f"line {begins}"
            cells = [cell.strip() for cell in cells]
            if not cells:
                continue
            if not header:
                _check_width(path, place, len(cells))
                header = cells
                continue
            if cells == header:
                raise ValueError(f"{path}, {place}: the names of the columns stand here once more; remove this line")
            if max(len(LINE_END.findall(cell)) for cell in cells) > MANY_LINES:
                told.append(f"{place} of {path.name} has a cell of more than {MANY_LINES} lines: check its quotes")
            values = dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=False))
            rows.append(Row(place, values, sum(map(bool, cells[len(header) :]))))
    except csv.Error as fault:
        why = first_line(fault)
        if "field limit" in why:
            why = f"a cell has more than {count(csv.field_size_limit())} characters; is a quotation mark missing?"
        raise ValueError(f"{path}, line {first}: {why}") from fault
    if _is_open(text, begins, delimiter):
        raise ValueError(
            f"{path}, line {begins}: a quotation mark is never closed, so the rest of the file is one cell"
        )
    return Rows(path, tuple(header), rows, told=tuple(told))


def _is_open(text: str, line: int, delimiter: str) -> bool:
    """Whether the last row of a table, which begins in this line, ends within a cell in quotation marks."""
    last = "\n".join(LINE_END.split(text)[line - 1 :])
    try:
        deque(csv.reader(io.StringIO(last, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True), 0)
    except csv.Error as fault:
        return "unexpected end of data" in str(fault)
    return False


def _check_width(path: Path, place: str, columns: int) -> None:
    if columns > MOST_COLUMNS:
        raise ValueError(f"{path}, {place}: more than {count(MOST_COLUMNS)} columns; remove those that nobody needs")


def _parquet(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise RuntimeError("Parquet files need one more package: pip install 'lamella[hf]'") from None
    try:
        table = read_table(path)
        found = table.to_pylist()
    except (ArrowException, OSError, ValueError) as fault:
        raise ValueError(f"{path} is not a Parquet file that can be read: {first_line(fault)}") from fault
    rows = [Row(f"row {i}", cells) for i, cells in enumerate(found, 1)]
    return Rows(path, tuple(table.column_names), rows, _class_names(table.schema.metadata or {}))


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of classes by column, which `datasets` writes into the Parquet files it makes."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {column: feature["names"] for column, feature in features.items() if "names" in feature}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {column: names for column, names in found.items() if isinstance(names, list)}
