"""Tables of labelled texts that clients send to learn from."""

import re
from pathlib import Path, PurePosixPath

from fastapi import HTTPException, UploadFile

from lamella.common.files import DISK_FULL
from lamella.common.words import count
from lamella.serving.kind import Columns, Unpacked
from lamella.serving.limits import MB, Limits
from lamella.serving.sent import read_table

__all__ = ["take_table"]

LONGEST_NAME = 60
OPTION = re.compile(r"--(text|label) ")


def take_table(upload: UploadFile, folder: Path, columns: Columns, limits: Limits) -> Unpacked:
    """Store a table under its own name, and read it once.

    Args:
        upload: the table.
        folder: an empty folder that receives it.
        columns: the columns that it is read by.
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
        found = read_table(file, file.stem, *columns)
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
