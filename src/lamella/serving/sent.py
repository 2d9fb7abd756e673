"""The data set of an upload: class folders of images, class folders of text files, or a table of texts or answers."""

from pathlib import Path

from lamella.data.sources.answer_rows import holds_answers, load_answers
from lamella.data.sources.readable import ReadableData, load_readable
from lamella.data.sources.rows import parse_rows
from lamella.data.sources.text_table import load_text_table
from lamella.serving.uploads_kept import ANSWERS, TEXTS, columns_sent, samples_sent

__all__ = ["TABLES", "read_answers", "read_sent", "read_table"]

TABLES = (".csv", ".tsv", ".jsonl")
"""The endings of tables. Those of other formats may be far larger in memory than they are as files."""


def read_sent(sent: Path, name: str) -> ReadableData:
    """Read what an upload holds.

    Args:
        sent: the folder of the upload.
        name: of the data set.

    Raises:
        ValueError: it cannot be read, or no sample of a class can.
    """
    place = samples_sent(sent).resolve()
    files = [file for file in place.iterdir() if file.suffix in TABLES and file.is_file()]
    if place.name == ANSWERS:
        return read_answers(files[0], name)
    if place.name == TEXTS and files:
        return read_table(files[0], name, *columns_sent(sent))
    samples = "texts" if place.name == TEXTS else "images"
    return load_readable(place, name=name, layout="classes", samples=samples)


def read_table(file: Path, name: str, text: str = "", label: str = "") -> ReadableData:
    """Read a table as texts, whatever its columns are called: a column of paths is not followed.

    Args:
        file: the table.
        name: of the data set.
        text: the column of the texts; "" for the usual names.
        label: the column of their labels; "" for the usual names.

    Raises:
        ValueError: a column or a value is missing or wrong. The message names the line, and the file without folder.
    """
    rows = parse_rows(Path(file.name), file.read_bytes())
    source = load_text_table(rows, name=name, text=text or None, label=label or None, test_fraction=0.0)
    return ReadableData.of(source)


def read_answers(file: Path, name: str) -> ReadableData:
    """Read a table of prompts and responses, of conversations, or of texts that are learned as they are.

    Args:
        file: the table.
        name: of the data set.

    Raises:
        ValueError: a column or a value is missing or wrong. The message names the line, and the file without folder.
    """
    rows = parse_rows(Path(file.name), file.read_bytes())
    source = load_answers(rows, name=name, test_fraction=0.0)
    if not holds_answers(rows):
        raise ValueError(
            f"{rows.heading}: texts with other columns beside them ({', '.join(rows.columns)}) are no answers; rows "
            "need prompt and response, messages, or text alone"
        )
    if not len(source.train):
        raise ValueError(
            f"{rows.heading}: split has no training answer, so there is nothing to learn; add some answers"
        )
    return ReadableData.of(source)
