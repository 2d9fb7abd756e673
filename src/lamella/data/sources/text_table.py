"""Labelled texts in a file of rows: a column of texts, one of labels, and optionally id, split and domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamella.common.checks import did_you_mean
from lamella.common.printable import printable
from lamella.data.names import alike, normal_name
from lamella.data.one_class import check_single_labels, columns_hint, several_labels
from lamella.data.scenario import Source
from lamella.data.sources.files import PARTS, used_parts
from lamella.data.sources.labelled_texts import LabelledText, texts_to_source
from lamella.data.sources.rows import AS_TEXT, Row, Rows

__all__ = ["LABELS", "TEXTS", "column_of", "load_text_table", "named_cell", "sound"]

TEXTS = ("text", "sentence", "utterance", "query")
"""The usual names of a column of texts."""
LABELS = ("label", "category", "intent", "class")
"""The usual names of a column of labels."""
ANSWERS = ("messages", "prompt", "response")
SEPARATORS = {".csv": "commas", ".tsv": "tabs"}
SHOWING = 1000  # so many rows show what the columns hold
MANY_COLUMNS = 20  # a message names no more of them
WORDS_OF_NAMES = 3  # the name of a column with more words is probably a text
FEW_NUMBERS = 5  # so many different numbers may be labels, however few rows there are


@dataclass(frozen=True)
class _Columns:
    """The columns that are read, by what they hold."""

    text: str
    label: str
    id: str | None
    split: str | None
    domain: str | None


def load_text_table(
    rows: Rows,
    *,
    name: str | None = None,
    text: str | None = None,
    label: str | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Load the labelled texts of a file; classes are its labels, sorted by name.

    Columns called `id`, `split` ("train", "test" or "val") and `domain` are read where they are there. As in folders,
    "val" is the test part where there is no "test", and is left alone where there is.

    Args:
        rows: of the file.
        name: of the data set; the file's name where left out.
        text: the column of the texts; one of TEXTS where left out.
        label: the column of the labels; one of LABELS where left out.
        test_fraction: of each class to hold out for testing where there is no split column.
        split_seed: of that split.

    Raises:
        ValueError: a column or value is missing or wrong; the message names the line.
    """
    columns = _columns(rows, text, label)
    samples = [_sample(rows, row, columns) for row in rows.rows]
    if not samples:
        raise ValueError(f"{rows.path} has no rows below the names of its columns")
    labels = zip((f"{rows.path}, {row.place}" for row in rows.rows), (s.class_name for s in samples), strict=True)
    check_single_labels(labels, columns.label, "text")
    _check_quantity(rows, columns.label, [sample.class_name for sample in samples])
    if columns.split:
        used = used_parts([str(row.cells.get(columns.split)) for row in rows.rows])
        samples = [sample for sample, is_used in zip(samples, used, strict=True) if is_used]
    named = _named(rows, columns, samples)
    return texts_to_source(
        name or rows.path.stem,
        samples,
        class_names=named,
        test_fraction=test_fraction,
        split_seed=split_seed,
        told=(f"texts are in the column {columns.text!r}, labels in {columns.label!r}", *rows.told),
    )


def column_of(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the column that has the first of these names that any has, in whatever capitals; None if none has."""
    known = {alike(column): column for column in reversed(columns)}
    return next((known[name] for name in names if name in known), None)


def _columns(rows: Rows, text: str | None, label: str | None) -> _Columns:
    where = rows.heading
    if not rows.columns:
        raise ValueError(f"{rows.path} is empty; give a file whose first line names its columns, such as text,label")
    has = f"its columns are {_listed(rows.columns)}"
    for wanted, option in ((text, "--text"), (label, "--label")):
        if wanted is not None and wanted not in rows.columns:
            meant = did_you_mean(wanted, rows.columns)
            raise ValueError(f"{where}: no column {wanted!r}{meant}; {has}: name one of them by {option}")
    texts, labels = text or column_of(rows.columns, TEXTS), label or column_of(rows.columns, LABELS)
    if (not texts or not labels) and (found := [c for c in rows.columns if alike(c) in ANSWERS]):
        raise ValueError(
            f"{where}: the columns {_listed(found)} are those of answers, and texts with labels need a column of texts "
            "and one of labels (--text and --label name them)"
        )
    if not texts or not labels:
        missing = "text" if not texts else "label"
        hint = columns_hint(rows.columns, [row.cells for row in rows.rows[:SHOWING]], "text") if not labels else ""
        raise ValueError(f"{where}: no {missing} column; {has}{hint or _advice(rows, texts, labels)}")
    if texts == labels:
        raise ValueError(f"{where}: the column {texts!r} cannot be both the texts and their labels; {has}")
    id_, split, domain = (column_of(rows.columns, (own,)) for own in ("id", "split", "domain"))
    rows.check_once((texts, labels, id_, split, domain))
    return _Columns(texts, labels, *(None if own in (texts, labels) else own for own in (id_, split, domain)))


def _advice(rows: Rows, text: str | None, label: str | None) -> str:
    """Say how to name the columns: that of the longest cells as the texts, that of the fewest values as the labels."""
    columns = [column for column in dict.fromkeys(rows.columns) if column]
    if len(columns) < 2:
        own = SEPARATORS.get(rows.path.suffix.lower())
        other = next((sign for sign in (";", "\t", "|", ",") if sign in "".join(columns)), None)
        save = f"save it with {own} between the cells, not with {other!r}"
        return f"; {save if own and other else 'it needs one of texts and one of labels'}"
    cells = {c: [str(row.cells.get(c) or "") for row in rows.rows[:SHOWING]] for c in columns}
    longest = text or max((c for c in columns if c != label), key=lambda c: sum(map(len, cells[c])))
    fewest = label or min((c for c in columns if c != longest), key=lambda c: len(set(cells[c])))
    said = [f"--text {_quoted(longest)}"] * (not text) + [f"--label {_quoted(fewest)}"] * (not label)
    looks_like_text = max(len(column.split()) for column in columns) > WORDS_OF_NAMES
    first = "; if line 1 is no names but the first text, put the line text,label above it" if looks_like_text else ""
    return f": say {' '.join(said)}{first}"


def _quoted(column: str) -> str:
    return column if column.isidentifier() else f"'{printable(column)}'"


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - MANY_COLUMNS} more" if len(columns) > MANY_COLUMNS else ""
    return ", ".join(map(printable, columns[:MANY_COLUMNS])) + more


def _sample(rows: Rows, row: Row, columns: _Columns) -> LabelledText:
    where = f"{rows.path}, {row.place}"
    if row.beyond:
        raise ValueError(
            f"{where}: more cells than the {len(rows.columns)} columns that line 1 names; put a text that holds the "
            'separator into quotation marks, "like, this"'
        )
    label = _label(row.cells.get(columns.label), rows.names.get(columns.label), where)
    text = row.cells.get(columns.text)
    if text is not None and text == text and not isinstance(text, str):
        raise ValueError(f"{where}: the text is {type(text).__name__} {str(text)[:20]!r}; {AS_TEXT}")
    domain = named_cell(row, columns.domain, "domain", where)
    split = named_cell(row, columns.split, "split", where)
    if split is not None and alike(split) not in PARTS:
        raise ValueError(f"{where}: the split {split!r} is unknown; use one of {', '.join(PARTS)}")
    return LabelledText(
        sound(text if isinstance(text, str) else "", "text", where),
        normal_name(label),
        f"{rows.path.name}, {row.place}",
        named_cell(row, columns.id, "id", where),
        None if domain is None else normal_name(domain),
        None if split is None else PARTS[alike(split)],
    )


def _label(value: Any, names: list[str] | None, where: str) -> str:
    if names is None or not isinstance(value, int):
        return _plain(value, "label", where)
    if not 0 <= value < len(names):
        raise ValueError(f"{where}: the label {value} has no name, there are {len(names)}; -1 hides a label")
    return names[value]


def named_cell(row: Row, column: str | None, noun: str, where: str) -> str | None:
    """Return an id, a split or a domain as text; None where there is no such column.

    Args:
        row: the row.
        column: the column.
        noun: what it holds, for messages.
        where: the file and the line, for messages.

    Raises:
        ValueError: the cell is empty, or no text or number.
    """
    return None if column is None else _plain(row.cells.get(column), noun, where)


def _plain(value: Any, noun: str, where: str) -> str:
    """Return a label, an id, a split or a domain as text."""
    if noun == "label" and isinstance(value, list | dict):
        raise ValueError(f"{where}: the label {str(value)[:40]!r} is a list of labels; {several_labels('text')}")
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{where}: the {noun} is {type(value).__name__}, not a text or a number")
    if value is None or value != value or not str(value).strip():  # only NaN, an empty cell of a table, is not itself
        raise ValueError(f"{where}: the {noun} is empty; write one, or remove the row")
    return sound(str(value).strip(), noun, where)


def sound(text: str, noun: str, where: str) -> str:
    """Return a text.

    Args:
        text: the text.
        noun: what it is, for messages.
        where: the file and the line, for messages.

    Raises:
        ValueError: no file could hold it.
    """
    if "\0" in text:
        raise ValueError(f"{where}: a NUL character in the {noun}, which no text has; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        half = f"{ord(text[fault.start]):04x}"
        raise ValueError(f"{where}: half a character (\\u{half}) in the {noun}; write it as UTF-8") from fault
    return text


def _check_quantity(rows: Rows, column: str, labels: Sequence[str]) -> None:
    """Raise ValueError where labels are numbers and few come twice."""
    different = set(labels)
    if len(different) >= FEW_NUMBERS and 2 * len(different) > len(labels) and all(map(_is_number, different)):
        raise ValueError(
            f"{rows.path}: the column {column!r} holds {len(different)} different numbers in {len(labels)} rows, so it "
            "looks like a quantity and not like labels; name another column by --label"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _named(rows: Rows, columns: _Columns, samples: Sequence[LabelledText]) -> list[str] | None:
    """Return the names of the classes in the order that the file itself gives them, if it does."""
    names = [normal_name(name) for name in rows.names.get(columns.label, ())]
    return names if {sample.class_name for sample in samples} <= set(names) else None
