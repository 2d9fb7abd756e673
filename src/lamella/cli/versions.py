"""`lamella history` and `lamella rollback`: the versions of a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["history", "rollback"]

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]


def history(model: Model, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the versions of a model.

    Every `lamella learn` makes one; none is ever changed. The star marks the one in use.
    """
    from lamella.store import history as versions

    found = versions(model)
    if as_json:
        typer.echo(json.dumps([version._asdict() for version in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from lamella.report.words import size

    table = Table("", "version", "made", "tasks", "state", "what")
    for v in found:
        star = "*" if v.current else ""
        table.add_row(star, str(v.number), v.made.replace("T", " "), str(len(v.tasks)), size(v.bytes), v.what)
    Console(highlight=False, markup=False).print(table)


def rollback(
    model: Model,
    to: Annotated[
        int | None, typer.Option(help="Number of a version.", show_default="the one before", metavar="VERSION")
    ] = None,
) -> None:
    """Use an earlier version of a model again.

    No version is lost: `lamella rollback --to` the newest one undoes this.
    """
    from lamella.locks import alone
    from lamella.store import history as versions
    from lamella.store import roll_back

    found = versions(model)
    current = next(v.number for v in found if v.current)
    earlier = [v.number for v in found if v.number < current]
    if to is None and not earlier:
        raise ValueError(f"version {current} of '{model}' is its first, so there is none before it; name one with --to")
    number = earlier[-1] if to is None else to
    with alone(model, f"another process is changing '{model}'; wait for it to end"):
        roll_back(model, number)
    tasks = next(v.tasks for v in versions(model) if v.number == number)
    counted = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
    typer.echo(f"{model} is version {number} again, with {counted}: {', '.join(tasks)}")
