"""What compiled blocks gain in a training step of low-rank branches, what they cost, and whether a task costs it anew.

    OMP_NUM_THREADS=1 python benchmarks/compilation.py [--device cuda]

Steps of the plain and of the compiled backbone take turns; printed are the median of the ratios within a round with the
middle half of them, and the seconds of the first compiled step, and of the first one after a branch was merged and the
next task's one has grown under another name. Torch keeps what it compiled on disk, which shortens a first step the next
time; with TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 it is what it is on a new machine.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
import typer
from rich.table import Table

from lamella.adapters.adapter import Site, grow, merge
from lamella.backbones import Backbone, load_backbone
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio_text
from lamella.experiments.bench.shown import show
from lamella.training.compilation import compiled_blocks
from lamella.training.precision import PRECISIONS, computing


def main(
    backbone: str = "vit_tiny_patch16_224", size: int = 128, batch: int = 32, repeats: int = 15, device: str = "cpu"
) -> None:
    """Time both forms in both precisions."""
    table = Table("precision", "compiled / plain step", "s, first step", "s, first step of task 2",
                  title=f"{backbone}, {size} px, batch {batch}, {device}")  # fmt: skip
    for precision in PRECISIONS:
        plain, other = (load_backbone(backbone, size=size, weights="random").to(device) for _ in range(2))
        x = torch.randn(batch, 3, size, size, generator=generator(0, "images")).to(device)
        with ExitStack() as stack:
            table.add_row(precision, *_figures(plain, other, x, precision, repeats, stack))
    show(table, f"compilation-{backbone}-{device}")


def _figures(
    plain: Backbone, other: Backbone, x: torch.Tensor, precision: str, repeats: int, stack: ExitStack
) -> tuple[str, str, str]:
    _adapted(plain, "task0")
    sites = _adapted(other, "task0")
    stack.enter_context(compiled_blocks(other, len(x)))
    forms = {"plain": lambda: _step(plain, x, precision), "compiled": lambda: _step(other, x, precision)}
    first = _seconds(forms["compiled"])
    times = interleaved(forms, repeats, processor=x.device.type == "cpu")
    merge(sites, "task0")
    _adapted(other, "task1")
    again = _seconds(forms["compiled"])
    return ratio_text(times["compiled"], times["plain"]), f"{first:.1f}", f"{again:.1f}"


def _adapted(backbone: Backbone, task: str) -> tuple[Site, ...]:
    sites = backbone.sites("key+value")
    for branch in grow(sites, task, 10, generator=generator(0, task)):
        branch.requires_grad_(True)
    return sites


def _step(model: Backbone, x: torch.Tensor, precision: str) -> None:
    with computing(x.device, precision):
        loss = model(x).float().square().mean()
    loss.backward()


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
