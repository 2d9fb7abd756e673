"""Printing of messages that may contain untrusted names."""

import typer

from lamella.common.printable import printable

__all__ = ["say"]


def say(line: str, *, err: bool = False, nl: bool = True) -> None:
    """Print one line. Line breaks and control characters in it, for example in file names, are escaped.

    Args:
        line: the text.
        err: whether to print on standard error.
        nl: whether to end the line.
    """
    typer.echo(printable(line), err=err, nl=nl)
