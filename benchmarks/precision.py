"""A training step of low-rank branches in each precision, as a ratio to timm's frozen forward pass in float32.

    python benchmarks/precision.py
    python benchmarks/precision.py --backbone vit_base_patch16_224 --size 224 --batch 8

"fused attention" is torch's own choice of kernel, "as shipped" what `lamella` runs. All forms take turns in one
process; printed are medians of the ratios within a round, in processor time, so that other work on the machine counts
less.
"""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import typer
from rich.table import Table

from lamella.adapters.adapter import grow
from lamella.backbones import load_backbone
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio
from lamella.experiments.bench.shown import show
from lamella.training.precision import computing

CPU = torch.device("cpu")


def main(backbone: str = "vit_tiny_patch16_224", size: int = 128, batch: int = 64, repeats: int = 7) -> None:
    """Time all forms."""
    frozen = load_backbone(backbone, size=size, weights="random")
    x = torch.randn(batch, 3, size, size, generator=generator(0, "images"))
    adapted = load_backbone(backbone, size=size, weights="random")
    branches = grow(adapted.sites("key+value"), "task", 10, generator=generator(0, "branches"))
    for branch in branches:
        branch.requires_grad_(True)

    def forward(context: AbstractContextManager[object]) -> None:
        with torch.no_grad(), context:
            frozen.model(x)

    def step(context: AbstractContextManager[object]) -> None:
        with context:
            loss = adapted(x).float().square().mean()
        loss.backward()

    contexts: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "float32": lambda: computing(CPU, "float32"),
        "bf16, fused attention": lambda: torch.autocast("cpu", torch.bfloat16),
        "bf16, as shipped": lambda: computing(CPU, "bf16"),
    }
    forms: dict[str, Callable[[], None]] = {
        f"{what}, {name}": lambda run=run, make=make: run(make())
        for what, run in (("forward", forward), ("step", step))
        for name, make in contexts.items()
    }
    seconds = interleaved(forms, repeats, processor=True)
    unit = seconds["forward, float32"]
    table = Table("", "forward, frozen", "training step", title=f"{backbone}, {size} px, batch {batch}")
    for name in contexts:
        cells = [ratio(seconds[f"{what}, {name}"], unit) for what in ("forward", "step")]
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    show(table, f"precision-{backbone}")
    print(f"1.00 is {statistics.median(unit):.3f} s of processor time, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    typer.run(main)
