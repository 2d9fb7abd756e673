"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.output import say

__all__ = ["Device", "Layout", "Model", "Untrusted", "Wait", "say_once"]

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, or a GPU by its number, such as cuda:1.", metavar="NAME", show_default="auto"),
]
Layout = Annotated[
    str | None,
    typer.Option(
        help="Of a folder: classes (CLASS/image, at any depth) or domains (DOMAIN/CLASS/image).",
        metavar="NAME",
        show_default="seen from the folder",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait while another process changes the model.")]
Untrusted = Annotated[
    bool,
    typer.Option("--untrusted", help="The model is a stranger's: use no file outside its folder, and no network."),
]


class _Once:
    """Prints a line unless it was the last one."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, line: str) -> None:
        if line != self.last:
            say(line, err=True)
            self.last = line


def say_once() -> _Once:
    """Return a function that prints each line once, however often it is called with it."""
    return _Once()
