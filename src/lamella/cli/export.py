"""`lamella export`: write a model in the format of another tool."""

from pathlib import Path
from typing import Annotated

import typer

from lamella.cli.arguments import Device, Model, Untrusted
from lamella.cli.output import say

__all__ = ["export"]


def export(
    model: Model,
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="timm (images), hf (texts, answers), peft, onnx, adapters (tensors).")
    ],
    out: Annotated[Path, typer.Option(metavar="PATH", help="A new folder; for onnx of images a new file.")],
    readout: Annotated[
        str, typer.Option(metavar="NAME", help="base: what the method is built on, such as its own heads.")
    ] = "",
    per_task: Annotated[
        bool, typer.Option("--per-task", help="With peft: a folder for each task, where tasks are kept apart.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(metavar="N", help="With peft: truncate each layer to this rank.", show_default="as it is"),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="With peft: the smallest ranks that keep this share, such as 0.99."),
    ] = None,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Write a model in a format that can be used without Lamella.

    The export is loaded again and compared with the model on random samples. It is deleted if it differs.
    A truncated one is compared with the truncated model, and how far that is from the model is printed.
    """
    from lamella.learner.export import export as write
    from lamella.learner.model import load

    found = load(model, device=device, trusted=not untrusted)
    lines = write(found, format, out, readout=readout, per_task=per_task, rank=rank, energy=energy)
    for line in (f"wrote {out} ({format})", *lines):
        say(line)
