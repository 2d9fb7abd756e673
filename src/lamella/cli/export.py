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
        str, typer.Option(metavar="FORMAT", help="timm (images), hf (texts), peft, onnx, adapters (tensors).")
    ],
    out: Annotated[Path, typer.Option(metavar="PATH", help="A new folder; for onnx of images a new file.")],
    readout: Annotated[
        str, typer.Option(metavar="NAME", help="base: what the method is built on, such as its own heads.")
    ] = "",
    per_task: Annotated[
        bool, typer.Option("--per-task", help="With peft: a folder for each task, where tasks are kept apart.")
    ] = False,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Write a model in a format that can be used without Lamella.

    The export is loaded again and compared with the model on random images or texts. It is deleted if it differs.
    """
    from lamella.learner.export import export as write
    from lamella.learner.model import load

    lines = write(load(model, device=device, trusted=not untrusted), format, out, readout=readout, per_task=per_task)
    for line in (f"wrote {out} ({format})", *lines):
        say(line)
