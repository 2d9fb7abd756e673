"""Convolutional backbones with channels last against channels first: forward pass and training step.

    python benchmarks/memory_layout.py
    python benchmarks/memory_layout.py --out memory-layout.json

`load_backbone` lays convolutional networks out with channels last. Here the same network in both layouts takes turns,
in each precision; printed are medians of the ratios within a round, below 1 where channels last is faster, and the
largest relative difference of the features.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lamella.backbones import load_backbone
from lamella.common.files import write_json
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio
from lamella.training.precision import PRECISIONS, computing

CPU = torch.device("cpu")
BACKBONES = (("resnet20", 28, 32), ("resnet32", 32, 64), ("resnet18", 64, 32), ("resnet18", 224, 8))
"""Name, side of the images, images of a batch."""


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
) -> None:
    """Time all forms."""
    rows: list[dict[str, str | float]] = []
    for name, size, batch in BACKBONES:
        first = load_backbone(name, size=size, weights="random").model.train().to(memory_format=torch.contiguous_format)
        last = copy.deepcopy(first).to(memory_format=torch.channels_last)
        x = torch.randn(batch, 3, size, size, generator=generator(0, "images"))
        with torch.no_grad():
            away = float((first(x) - last(x)).abs().max() / first(x).abs().max())
        for precision in PRECISIONS:
            forms: dict[str, Callable[[], object]] = {
                f"{what}, {layout}": partial(run, model, x, precision)
                for what, run in (("forward", _forward), ("step", _step))
                for layout, model in (("first", first), ("last", last))
            }
            times = interleaved(forms, repeats)
            ratios = {what: ratio(times[f"{what}, last"], times[f"{what}, first"]) for what in ("forward", "step")}
            rows.append({"backbone": f"{name}, {size} px", "precision": precision, **ratios, "difference": away})
    table = Table("backbone", "precision", "forward", "training step", "features differ by",
                  title=f"channels last / channels first, {torch.get_num_threads()} threads")  # fmt: skip
    for row in rows:
        table.add_row(str(row["backbone"]), str(row["precision"]), f"{row['forward']:.2f}", f"{row['step']:.2f}",
                      f"{row['difference']:.0e}")  # fmt: skip
    Console(width=100).print(table)
    if out:
        write_json(out, rows)


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor, precision: str) -> None:
    with computing(CPU, precision):
        model(x)


def _step(model: nn.Module, x: Tensor, precision: str) -> None:
    weights = list(model.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    with computing(CPU, precision):
        loss = model(x).float().square().mean()
    torch.autograd.grad(loss, weights, allow_unused=True)


if __name__ == "__main__":
    typer.run(main)
