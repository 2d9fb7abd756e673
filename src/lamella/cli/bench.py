"""`lamella bench speed`, `memory` and `growth`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["growth", "memory", "speed"]

BackboneName = Annotated[str, typer.Option("--backbone", metavar="NAME", help="With random weights.")]
Size = Annotated[int | None, typer.Option("--size", min=1, help="Side of its input, in pixels; its own if left out.")]
Method = Annotated[
    str, typer.Option("--method", metavar="NAME", help="With parts, as in inflora+align, or base: dlc(wa).")
]
Batch = Annotated[int, typer.Option("--batch", min=2, help="Images of a training step.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the figures as JSON.")]


def speed(
    backbone: BackboneName = "vit_tiny_patch16_224",
    size: Size = None,
    method: Method = "inflora",
    batch: Batch = 32,
    images: Annotated[int, typer.Option("--images", min=2, help="Of each task that is learned.")] = 128,
    repeats: Annotated[int, typer.Option("--repeats", min=1)] = 3,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Where the time of learning goes on this machine, and which precision is faster.

    Synthetic tasks are learned in float32 and bfloat16 in turn. Every phase stands beside the frozen forward pass over
    the same images: medians, and ratios within a round, so that other work on the machine counts little.
    """
    from lamella.experiments.bench.speed import measure_speed

    found = measure_speed(_table(backbone, size), method, batch=batch, images=images, repeats=repeats, device=device)
    columns = [f"{p}, {what}" for p in found.phases for what in ("ms an image", "x forward")]
    table = _titled(f"{method} on {backbone}, batches of {batch}", *columns)
    for name in found.phases["float32"]:
        cells = [found.phases[p][name] for p in found.phases]
        table.add_row(name, *(text for c in cells for text in (f"{c.milliseconds:.2f}", f"{c.ratio:.2f}")))
    table.add_row("waiting for images", *(t for p in found.phases for t in (f"{found.waited[p]:.1%}", "")))
    _show(table)
    fastest = f"Learning is faster here with fit.precision={found.fastest}"
    typer.echo(f"training counts one epoch. {fastest}; fit.precision=auto chooses by a shorter measurement")
    _keep(
        out,
        {
            "phases": {p: {n: vars(c) for n, c in named.items()} for p, named in found.phases.items()},
            "waited": found.waited,
            "fastest": found.fastest,
        },
    )


def memory(
    backbone: BackboneName = "vit_tiny_patch16_224",
    size: Size = None,
    method: Method = "inflora",
    batch: Batch = 32,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Peak memory of learning beside a frozen forward pass and the activations that the backward pass needs."""
    from lamella.common.words import size as as_size
    from lamella.experiments.bench.memory import measure_memory
    from lamella.training.precision import PRECISIONS

    table = _titled(f"{method} on {backbone}, batches of {batch}", *PRECISIONS)
    found = {
        p: measure_memory(_table(backbone, size), method, batch=batch, precision=p, device=device) for p in PRECISIONS
    }
    for name in found["float32"]:
        table.add_row(name, *(as_size(found[p][name]) for p in PRECISIONS))
    floors = [found[p]["frozen forward"] + found[p]["activations"] for p in PRECISIONS]
    shares = [found[p]["training"] / floor for p, floor in zip(PRECISIONS, floors, strict=True)]
    table.add_row("training / (forward + activations)", *(f"{share:.2f}" for share in shares))
    _show(table)
    typer.echo("peaks above the loaded model")
    _keep(out, found)


def growth(
    backbone: BackboneName = "fractal-vit-micro",
    size: Size = None,
    method: Method = "inflora",
    tasks: Annotated[int, typer.Option("--tasks", min=2)] = 100,
    images: Annotated[int, typer.Option("--images", min=2, help="Of each task.")] = 32,
    batch: Batch = 32,
    device: Device = "auto",
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw the curves.")] = None,
    out: Out = None,
) -> None:
    """What a task costs as tasks add up: time, memory, and the time of a prediction."""
    from lamella.common.progress import bars
    from lamella.experiments.bench.growth import follow, slope
    from lamella.experiments.bench.growth_figure import PANELS, growth_png
    from lamella.experiments.bench.streams import quick_learner, synthetic_task

    learner = quick_learner(_table(backbone, size), method, batch, {"device": device})
    stream = (synthetic_task(i, images, learner.backbone.transform) for i in range(tasks))
    with bars("growth", tasks) as advance:
        costs = follow(learner, stream, lambda i, cost: advance(1, ""))
    table = _titled(
        f"{method} on {backbone}, {tasks} tasks of {images} images", "first tenth", "last tenth", "slope, a task"
    )
    tenth = max(tasks // 10, 1)
    for key, (label, factor) in PANELS.items():
        values = [factor * cost[key] for cost in costs]
        first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
        table.add_row(label, f"{first:.2f}", f"{last:.2f}", f"{slope(values):+.4f}")
    _show(table)
    if png:
        from lamella.common.files import write_atomic

        write_atomic(png, growth_png(costs))
        typer.echo(f"curves: {png}")
    _keep(out, costs)


def _table(backbone: str, size: int | None) -> dict[str, Any]:
    weights = {"name": backbone, "weights": "random"}
    return weights if size is None else weights | {"size": size}


def _titled(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table("", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show(table: "Table") -> None:
    from rich.console import Console

    Console(width=max(100, Console().width)).print(table)


def _keep(out: Path | None, figures: object) -> None:
    if out is not None:
        from lamella.common.files import write_json

        write_json(out, figures)
        typer.echo(f"figures: {out}")
