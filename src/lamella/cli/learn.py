"""`lamella learn`: a model directory that grows task by task."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamella.cli.under_way import UNDER_WAY, current_version, under_way

if TYPE_CHECKING:
    from lamella.data.scenario import Source
    from lamella.learner import Learner

__all__ = ["learn"]

BACKBONE = "fractal-vit-micro"
METHOD = "inflora"  # carried by alignment
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]


def learn(
    model: Model,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder CLASS/*.jpg, a CSV of paths and labels, or an npz archive.")
    ],
    backbone: Annotated[str | None, typer.Option(help="Of a new model.", metavar="NAME", show_default=BACKBONE)] = None,
    method: Annotated[
        str | None, typer.Option(help="Of a new model.", metavar="NAME", show_default=f"{METHOD} with alignment")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of a new model.", show_default="0")] = None,
) -> None:
    """Teach a model the classes of DATA.

    They become its next task; the first use creates the model. Old data is not needed, and not kept.
    """
    from lamella.data.keeping import keep_decoded
    from lamella.data.sources import load_source
    from lamella.locks import alone

    # What can fail does so before hours of training: unreadable images, a folder that cannot be written.
    source = load_source(data)
    source = replace(source, train=keep_decoded(source.train), test=keep_decoded(source.test))
    before = current_version(model)
    learner = _open(model, backbone, method, seed)
    with alone(model, f"another process is learning into '{model}'; wait for it to end"):
        if current_version(model) != before:  # another process has just finished
            learner = _open(model, None, None, None)
        try:
            _learn(learner, source, model)
        except KeyboardInterrupt:
            typer.echo(f"'{model}' is as it was before; the same command goes on where this one stopped", err=True)
            raise


def _open(model: Path, backbone: str | None, method: str | None, seed: int | None) -> "Learner":
    """The learner of an existing model, or a new one."""
    from lamella.learner import Learner
    from lamella.store import MANIFEST, holds_model

    if not holds_model(model):
        if model.is_file() or (
            model.exists() and any(path.name not in (".lock", UNDER_WAY) for path in model.iterdir())
        ):
            raise ValueError(f"'{model}' exists and is no model (no {MANIFEST} in it); choose a new folder")
        return Learner.create(backbone=backbone or BACKBONE, method=method or METHOD, seed=seed or 0)
    if backbone or method or seed is not None:
        raise ValueError(
            f"'{model}' exists already, so its backbone, method and seed are fixed; "
            "leave out --backbone, --method and --seed"
        )
    return Learner.load(model)


def _learn(learner: "Learner", source: "Source", model: Path) -> None:
    from lamella.next_task import as_next_task
    from lamella.progress import bars

    task, held_back = as_next_task(source, learner)
    known = set(learner.class_names.values())
    new = [name for name in task.class_names if name not in known]
    again = [name for name in task.class_names if name in known]
    typer.echo(
        f"{task.name}: {len(task.train)} images to learn from, {len(held_back)} held back; "
        f"{len(new)} new classes" + (f", and more of {', '.join(again)}" if again else "")
    )
    checkpoints = under_way(model, learner, task)
    if checkpoints is None:
        return
    record = learner.learn(task, held_back=held_back, checkpoints=checkpoints, progress=bars)
    learner.save(model, what=f"learned {task.name}")
    checkpoints.clear()
    typer.echo(
        f"{model} learned {len(task.classes)} classes from {len(task.train)} images: {', '.join(task.class_names)}"
    )
    if "held_back" in record:
        right, images = record["held_back"]["right"], record["held_back"]["images"]
        typer.echo(f"right on held-back images of these classes: {right / images:.1%} of {images}")
