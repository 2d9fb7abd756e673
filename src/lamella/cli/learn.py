"""`lamella learn`: a model directory that grows task by task."""

import errno
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamella.cli.before_and_after import say_expected, say_found, say_known, say_took
from lamella.cli.opening import BACKBONE, METHOD, open_learner, same_again
from lamella.cli.say import say
from lamella.cli.under_way import current_version, under_way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.data.keeping import Unreadable
    from lamella.data.scenario import Source
    from lamella.learner import Learner

__all__ = ["learn"]

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]


def learn(
    model: Model,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder CLASS/*.jpg, a CSV of paths and labels, or an npz archive.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Of a new model, such as method.epochs=5 or backbone.size=128.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Of a new model; also a FOLDER of timm or `lamella export`, or NAME+FOLDER with a LoRA of PEFT.",
            metavar="NAME",
            show_default=BACKBONE,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Of a new model, with its parts; plain inflora has none.", metavar="NAME", show_default=METHOD
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of a new model.", show_default="0")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse DATA with files that cannot be read, instead of leaving them out.")
    ] = False,
) -> None:
    """Teach a model the classes of DATA.

    They become its next task; the first use creates the model. Old data is not needed, and not kept.
    """
    from lamella.data.readable import load_readable
    from lamella.locks import alone

    # What can fail does so before hours of training: unreadable images, a folder that cannot be written.
    source, unreadable = load_readable(data)
    if strict and unreadable:
        first = f"the first is {unreadable[0].key}: {unreadable[0].reason}"
        raise ValueError(f"{len(unreadable)} files of '{data}' cannot be read, {first}; replace or remove them")
    before = current_version(model)
    learner = open_learner(model, backbone, method, seed, settings or ())
    with alone(model, f"another process is learning into '{model}'; wait for it to end"):
        if current_version(model) != before:  # another process has just finished
            learner = open_learner(model)
        try:
            _learn(learner, source, unreadable, model)
        except KeyboardInterrupt:
            say(f"'{model}' is as it was before; the same command goes on where this one stopped", err=True)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            hint = "the model is whole, and with more space the same command goes on"
            raise OSError(error.errno, f"{error.strerror}; {hint}", str(model)) from error


def _learn(learner: "Learner", source: "Source", unreadable: "Sequence[Unreadable]", model: Path) -> None:
    from lamella.next_task import as_next_task, note_unreadable
    from lamella.progress import bars

    task, held_back = as_next_task(source, learner)
    say_found(learner, task, len(held_back), unreadable)
    learning = under_way(model, learner, task)
    if learning is None:
        return
    expected = None if learning.goes_on else say_expected(same_again(learner, model), task, len(held_back))
    started = time.monotonic()
    record = learner.learn(task, held_back=held_back, checkpoints=learning.checkpoints, progress=bars)
    note_unreadable(record, unreadable)
    learner.save(model, what=f"learned {task.name}")
    learning.checkpoints.clear()
    names = ", ".join(task.class_names)
    say(f"{model} learned {len(task.classes)} classes from {len(task.train)} images: {names}")
    say_took(learner, time.monotonic() - started, expected)
    say_known(learner)
