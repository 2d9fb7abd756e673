"""`lamella history`, `rollback`, `forget` and `prune`: the versions of a model."""

import json
from typing import Annotated

import typer

from lamella.cli.arguments import Model, Untrusted, Wait, say_once
from lamella.cli.output import say
from lamella.common.words import many

__all__ = ["forget", "history", "prune", "rollback"]


def history(model: Model, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the versions of a model.

    Every `lamella learn` adds a version, and no version is ever changed. A star marks the current one.
    """
    from lamella.learner.folder import ModelFolder

    found = ModelFolder(model).history()
    if as_json:
        typer.echo(json.dumps([version._asdict() for version in found], indent=2))
        return
    from lamella.common.plain_table import plain_table
    from lamella.common.words import NOTHING, size

    rows = [
        (
            "*" if v.current else "",
            str(v.number),
            str(v.parent or NOTHING),
            v.made.replace("T", " "),
            str(len(v.tasks)),
            size(v.bytes),
            v.what,
        )
        for v in found
    ]
    typer.echo(plain_table(("", "version", "from", "made", "tasks", "stored", "what"), rows), nl=False)


def rollback(
    model: Model,
    to: Annotated[
        int | None,
        typer.Option(help="Number of a version.", show_default="what it was made from", metavar="VERSION"),
    ] = None,
    wait: Wait = False,
) -> None:
    """Use an earlier version of a model again.

    All versions are kept; `lamella rollback --to` with the newest one undoes this.
    """
    from lamella.learner.folder import ModelFolder

    version = ModelFolder(model, waiting=say_once() if wait else None).roll_back(to)
    tasks = f"{many(len(version.tasks), 'task')}: {', '.join(version.tasks)}"
    say(f"{model} is version {version.number} again, with {tasks}")


def forget(
    model: Model,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Name of a task: the last one, or any if the tasks share nothing.")
    ],
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove every stored version that has learned the task.")
    ] = False,
    wait: Wait = False,
    untrusted: Untrusted = False,
) -> None:
    """Make a model forget a task, exactly.

    For the last task, the model returns to the version before it. An earlier task can be forgotten only if the tasks
    share nothing (color, linear-probe); then its own part is dropped. Otherwise the command refuses and says why.
    """
    from lamella.learner.folder import ModelFolder

    done = ModelFolder(model, waiting=say_once() if wait else None, trusted=not untrusted).forget(task, purge=purge)
    how = "the other tasks are as they were" if done.as_in is None else f"it is as it was in version {done.as_in}"
    numbers = ", ".join(map(str, done.having))
    fate = f"versions removed: {numbers}" if purge else f"versions that still have it, --purge removes them: {numbers}"
    say(f"{model} has forgotten {task}: {how}{f'; {fate}' if done.having else ''}")


def prune(
    model: Model,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions are kept.", metavar="N")],
    wait: Wait = False,
) -> None:
    """Delete old versions of a model, and the files that only they need.

    The current version is always kept. The size in the output is that of the deleted files.
    """
    from lamella.common.words import size
    from lamella.learner.folder import ModelFolder

    folder = ModelFolder(model, waiting=say_once() if wait else None)
    done = folder.prune(keep)
    left = many(done.left, "version")
    if not done.versions:
        say(f"{model} has {left}; none is deleted")
        return
    numbers = ", ".join(map(str, done.versions))
    say(f"{model}: {many(len(done.versions), 'version')} deleted: {numbers} ({size(done.bytes)}); {left} left")
