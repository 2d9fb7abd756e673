"""What commands say to people, in which names of any kind may stand."""

import typer

from lamella.common.printable import printable

__all__ = ["say"]


def say(line: str, *, err: bool = False, nl: bool = True) -> None:
    """Print one line, which no name of a file, a task or a class within it can break, and none can command the
    terminal."""
    typer.echo(printable(line), err=err, nl=nl)
