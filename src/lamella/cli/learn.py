"""`lamella learn` and `lamella predict`: a model directory that grows task by task."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lamella.data.scenario import Source, Task
    from lamella.learner import Learner, Prediction

__all__ = ["learn", "predict"]

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
    learner = _open(model, backbone, method, seed)
    with alone(model, f"another process is learning into '{model}'; wait for it to end"):
        _learn(learner, source, model)


def _open(model: Path, backbone: str | None, method: str | None, seed: int | None) -> "Learner":
    """The learner of an existing model, or a new one."""
    from lamella.learner import Learner
    from lamella.store import MANIFEST, holds_model

    if not holds_model(model):
        if model.is_file() or (model.exists() and any(path.name != ".lock" for path in model.iterdir())):
            raise ValueError(f"'{model}' exists and is no model (no {MANIFEST} in it); choose a new folder")
        return Learner.create(backbone=backbone or BACKBONE, method=method or METHOD, seed=seed or 0)
    if backbone or method or seed is not None:
        raise ValueError(
            f"'{model}' exists already, so its backbone, method and seed are fixed; "
            "leave out --backbone, --method and --seed"
        )
    return Learner.load(model)


def _learn(learner: "Learner", source: "Source", model: Path) -> None:
    from lamella.progress import bars

    task = _as_task(source, learner)
    learner.learn(task, progress=bars)
    learner.save(model, what=f"learned {task.name}")
    typer.echo(
        f"{model} learned {len(task.classes)} classes from {len(task.train)} images: {', '.join(task.class_names)}"
    )
    if len(source.test):
        typer.echo(
            f"right on held-out images of these classes: {_share_right(learner, source):.1%} of {len(source.test)}"
        )


def predict(
    model: Model,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Name the class of each image.

    With confidences, and the task that taught the class.
    """
    from lamella.learner import Learner

    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no image file '{path}'")
    predictions = Learner.load(model).predict(paths, top=top)
    rows = [_row(path, prediction) for path, prediction in zip(paths, predictions, strict=True)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        named = ", ".join(f"{entry['name']} {entry['confidence']:.1%}" for entry in row["classes"])
        typer.echo(f"{row['path']}: {named} (task: {row['task']})")


def _as_task(source: "Source", learner: "Learner") -> "Task":
    """The training part as the learner's next task: known class names keep their ids, new ones get the next."""
    from lamella.data.images import ImageSet
    from lamella.data.scenario import Task

    if not isinstance(source.train, ImageSet):
        raise TypeError(f"{source.name} holds no images")
    labels = source.train.labels
    ids = {name: i for i, name in learner.class_names.items()}
    names = [source.class_names[i] for i in labels.unique().tolist()]
    for name in names:
        ids.setdefault(name, len(ids))
    renumbered = labels.new_tensor([ids.get(name, -1) for name in source.class_names])[labels]
    train = ImageSet(source.train.storage, renumbered, source.train.keys, source.train.positions)
    return Task(len(learner.tasks), source.name, tuple(ids[n] for n in names), tuple(names), train)


def _share_right(learner: "Learner", source: "Source") -> float:
    from lamella.data.images import ImageSet

    if not isinstance(source.test, ImageSet):
        raise TypeError(f"{source.name} holds no images")
    named = [prediction.classes[0] for prediction in learner.predict(source.test, top=1)]
    wanted = [source.class_names[i] for i in source.test.labels.tolist()]
    return sum(a == b for a, b in zip(named, wanted, strict=True)) / len(wanted)


def _row(path: Path, prediction: "Prediction") -> dict[str, Any]:
    pairs = zip(prediction.classes, prediction.confidences, strict=True)
    classes = [{"name": name, "confidence": confidence} for name, confidence in pairs]
    return {"path": str(path), "classes": classes, "task": prediction.task}
