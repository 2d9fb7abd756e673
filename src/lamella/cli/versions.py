"""`lamella history`, `lamella rollback` and `lamella forget`: the versions of a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["forget", "history", "rollback"]

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


def forget(
    model: Model,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of the task that was learned last.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove every stored version that has learned the task.")
    ] = False,
) -> None:
    """Make a model forget its last task, exactly.

    The new version is the one from before the task: nothing of the task is left in it.
    """
    from lamella.locks import alone
    from lamella.store import drop_versions, load_manifest, make_again
    from lamella.store import history as versions

    with alone(model, f"another process is changing '{model}'; wait for it to end"):
        tasks = load_manifest(model)["tasks"]
        names = [record["name"] for record in tasks]
        if task not in names:
            raise ValueError(f"'{model}' has learned no task '{task}'; it has learned {', '.join(names) or 'nothing'}")
        if task != names[-1]:
            raise ValueError(
                f"'{task}' is not the last task of '{model}': {', '.join(names[names.index(task) + 1 :])} were learned "
                "with what it left acting, and shared statistics hold it; go back with `lamella rollback` and learn "
                "those again, or forget them first, the last one first"
            )
        before = [v.number for v in versions(model) if load_manifest(model, v.number)["tasks"] == tasks[:-1]]
        if not before:
            raise ValueError(f"the version of '{model}' from before '{task}' is not kept, so it cannot be forgotten")
        make_again(model, before[-1], f"forgot {task}")
        gone = [v.number for v in versions(model) if task in v.tasks] if purge else []
        drop_versions(model, gone)
    kept = f"; versions {', '.join(map(str, gone))} are removed" if gone else ""
    typer.echo(f"{model} has forgotten {task}: it is as it was in version {before[-1]}{kept}")
