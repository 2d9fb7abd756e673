"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.output import say

__all__ = [
    "Address",
    "Device",
    "FROM_STDIN",
    "LabelColumn",
    "Layout",
    "Model",
    "Resource",
    "Samples",
    "TextColumn",
    "Untrusted",
    "Wait",
    "read_options",
    "say_once",
]

FROM_STDIN = "-"
"""Given as a path or a prompt: its lines are read from stdin."""

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster, such as auto.", metavar="ADDRESS", show_default="one on this machine"),
]
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
Resource = Annotated[
    list[str] | None,
    typer.Option(
        help="What each process asks the engine for, such as num_gpus=1 of Ray or slurm_partition=gpu; repeatable.",
        metavar="KEY=VALUE",
    ),
]
Samples = Annotated[
    str | None,
    typer.Option(
        help="Of a folder: images or texts, where it holds both. Of a table of texts alone: answers.",
        metavar="NAME",
        show_default="seen from the data",
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="Of a table: the column of the texts.",
        metavar="COLUMN",
        show_default="text, sentence, utterance or query",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="Of a table: the column of the labels.",
        metavar="COLUMN",
        show_default="label, category, intent or class",
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


def read_options(layout: str | None, samples: str | None, text: str | None, label: str | None) -> dict[str, str]:
    """Return the options of reading a data set that were given."""
    given = {"layout": layout, "samples": samples, "text": text, "label": label}
    return {name: value for name, value in given.items() if value is not None}
