"""What `lamella predict` is asked about: images by their files, texts by their files or themselves."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from lamella.cli.arguments import FROM_STDIN
from lamella.data.images import Files, ImageSet
from lamella.data.keeping import keep_readable
from lamella.data.loading import Examples
from lamella.data.sources import rows
from lamella.data.sources.far_files import list_files
from lamella.data.sources.unlabelled_texts import PlacedText, read_texts, without_empty
from lamella.data.texts import TextSet, normal_text

__all__ = ["Asked", "Named", "asked_images", "asked_texts", "check_paths"]

Named: TypeAlias = dict[str, str]
"""What a row of the output begins with: the path of an image, or a text and its place."""


class Asked(NamedTuple):
    """Samples to predict.

    Attributes:
        data: the samples.
        named: how each is named in the output.
        broken: what cannot be read, and why.
    """

    data: Examples
    named: list[Named]
    broken: list[tuple[str, str]]


def check_paths(paths: Sequence[str]) -> None:
    """Raise FileNotFoundError where a path does not exist, before a model is loaded."""
    for path in paths:
        if path != FROM_STDIN and not Path(path).exists():
            text = "; for a text itself use --text" if " " in path else ""
            raise FileNotFoundError(f"no file or folder '{path}'{text}")


def asked_images(paths: Sequence[str]) -> Asked:
    """Find the image files that paths name, folders and lines of stdin among them, in order.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder has no image.
    """
    lines = [line for path in paths for line in (_lines_of_stdin() if path == FROM_STDIN else [path]) if line]
    check_paths(lines)
    files = [Path(name) for line in lines for name in list_files(line).names]
    found = keep_readable(ImageSet.unlabelled(Files(files)))
    named = [{"path": str(files[int(key)])} for key in found.data.keys]
    return Asked(found.data, named, [(str(files[int(file.key)]), file.reason) for file in found.unreadable])


def asked_texts(paths: Sequence[str], texts: Sequence[str], column: str | None) -> Asked:
    """Read the texts of files, of lines of stdin, and those that stand on the command line.

    Args:
        paths: files and folders; "-" for stdin.
        texts: the texts themselves.
        column: that of the texts in files of rows; None for one of the usual names.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file cannot be read, or has no column of texts.
    """
    placed = [PlacedText(normal_text(text)) for text in texts]
    for path in paths:
        placed += _texts_of_stdin() if path == FROM_STDIN else read_texts(Path(path), column)
    kept, empty = without_empty(placed)
    named = [{"text": text.text, "path": text.place} for text in kept]
    return Asked(TextSet.unlabelled([text.text for text in kept]), named, [(file.key, file.reason) for file in empty])


def _texts_of_stdin() -> list[PlacedText]:
    lines = rows.lines_of(rows.decoded(sys.stdin.buffer.read(), rows.STDIN))
    return [PlacedText(normal_text(line), f"{rows.STDIN}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def _lines_of_stdin() -> list[str]:
    return rows.lines_of(os.fsdecode(sys.stdin.buffer.read()))
