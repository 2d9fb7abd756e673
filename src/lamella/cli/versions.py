"""`lamella history`, `lamella rollback` and `lamella forget`: the versions of a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.output import say

__all__ = ["forget", "history", "rollback"]

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]


def history(model: Model, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the versions of a model.

    Every `lamella learn` makes one; none is ever changed. The star marks the one in use.
    """
    from lamella.learner.store.versions import history as versions

    found = versions(model)
    if as_json:
        typer.echo(json.dumps([version._asdict() for version in found], indent=2))
        return
    from lamella.common.plain_table import plain_table
    from lamella.common.words import size

    rows = [
        ("*" if v.current else "", str(v.number), v.made.replace("T", " "), str(len(v.tasks)), size(v.bytes), v.what)
        for v in found
    ]
    typer.echo(plain_table(("", "version", "made", "tasks", "state", "what"), rows), nl=False)


def rollback(
    model: Model,
    to: Annotated[
        int | None, typer.Option(help="Number of a version.", show_default="the one before", metavar="VERSION")
    ] = None,
) -> None:
    """Use an earlier version of a model again.

    No version is lost: `lamella rollback --to` the newest one undoes this.
    """
    from lamella.common.locks import alone
    from lamella.learner.store.versions import history as versions
    from lamella.learner.store.versions import roll_back

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
    say(f"{model} is version {number} again, with {counted}: {', '.join(tasks)}")


def forget(
    model: Model,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of a task: the last, or any where none share.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove every stored version that has learned the task.")
    ] = False,
) -> None:
    """Make a model forget a task, exactly.

    The last one: the new version is the one from before it. An earlier one: only where tasks share nothing (color,
    linear-probe), and what is theirs is dropped; else it is refused, with the reason.
    """
    from lamella.common.locks import alone
    from lamella.learner.store.versions import drop_versions, load_manifest, make_again
    from lamella.learner.store.versions import history as versions

    with alone(model, f"another process is changing '{model}'; wait for it to end"):
        tasks = load_manifest(model)["tasks"]
        names = [record["name"] for record in tasks]
        if task not in names:
            raise ValueError(f"'{model}' has learned no task '{task}'; it has learned {', '.join(names) or 'nothing'}")
        earlier = [v.number for v in versions(model) if load_manifest(model, v.number)["tasks"] == tasks[:-1]]
        if task == names[-1] and earlier:
            make_again(model, earlier[-1], f"forgot {task}")
            how = f"it is as it was in version {earlier[-1]}"
        else:
            _drop_task(model, task)
            how = "the other tasks are as they were"
        having = [v.number for v in versions(model) if v.tasks.count(task) >= names.count(task)]
        drop_versions(model, having if purge else [])
    numbers = ", ".join(map(str, having))
    fate = f"versions removed: {numbers}" if purge else f"versions that still have it, --purge removes them: {numbers}"
    left = f"; {fate}" if having else ""
    say(f"{model} has forgotten {task}: {how}{left}")


def _drop_task(model: Path, task: str) -> None:
    from lamella.learner.learner import Learner

    learner = Learner.load(model)
    learner.forget(task)
    learner.save(model, what=f"forgot {task}")
