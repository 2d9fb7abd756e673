"""Tables of labelled texts, or of answers, that clients send to learn from."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fastapi import HTTPException, UploadFile

from lamella.common.files import DISK_FULL
from lamella.common.words import count
from lamella.data.sources.readable import ReadableData
from lamella.serving.kind import Unpacked
from lamella.serving.limits import MB, Limits

__all__ = ["refuse_others", "take_table"]

LONGEST_NAME = 60
NO_TABLES = (".json", ".parquet", ".xls", ".xlsx", ".ods")
"""Files of rows that are not taken: they can be far larger in memory than on disk."""
OPTION = re.compile(r"--(text|label) ")


def refuse_others(ending: str) -> None:
    """Refuse files of rows that are not taken.

    Args:
        ending: of the file's name, in small letters.

    Raises:
        HTTPException: 415, it is that of such a file.
    """
    if ending in NO_TABLES:
        raise HTTPException(415, f"{ending} files are not taken; save it as .csv, .tsv or .jsonl")


def take_table(upload: UploadFile, folder: Path, read: Callable[[Path, str], ReadableData], limits: Limits) -> Unpacked:
    """Store a table under its own name, and read it once.

    Args:
        upload: the table.
        folder: an empty folder that receives it.
        read: makes a data set of a table and its name.
        limits: the bounds on tables.

    Raises:
        HTTPException: 413, the table has too many bytes or lines; 422, it cannot be read; 507, the disk is full.
    """
    sent = upload.filename or ""
    content = upload.file.read(int(limits.table_mb * MB) + 1)
    if len(content) > limits.table_mb * MB:
        raise HTTPException(413, f"'{sent}' is larger than the {limits.table_mb:g} MB that a table may have")
    if (lines := max(map(content.count, (b"\n", b"\r")))) > limits.table_lines:
        most = count(limits.table_lines)
        raise HTTPException(413, f"'{sent}' has {count(lines)} lines; a table may have {most}, send several one by one")
    file = folder / _plain_name(sent)
    try:
        file.write_bytes(content)
    except OSError as error:
        full = error.errno in DISK_FULL
        raise HTTPException(507 if full else 422, f"'{sent}' cannot be stored: {error.strerror}") from None
    try:
        found = read(file, file.stem)
    except ValueError as error:
        # What are options of a command are fields of the form.
        raise HTTPException(422, OPTION.sub(r"\1=", " ".join(str(error).split()))) from None
    return Unpacked(sum(map(len, (found.whole.train, found.whole.test, found.unreadable))))


def _plain_name(sent: str) -> str:
    """Return the name of a file without folders and signs that could lead elsewhere.

    >>> _plain_name("../a b\\\\Tickets (1).CSV"), _plain_name(".csv")
    ('Tickets (1).csv', 'table.csv')
    """
    stem, dot, ending = PurePosixPath(sent.replace("\\", "/")).name.rpartition(".")
    kept = "".join(sign for sign in stem if sign.isalnum() or sign in " -_()")[:LONGEST_NAME]
    return f"{kept.strip() or 'table'}{dot}{ending.lower()}"
