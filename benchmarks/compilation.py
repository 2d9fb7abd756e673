"""What `torch.compile` gains in a training step of low-rank branches, what it costs, and how often it compiles anew.

    OMP_NUM_THREADS=1 python benchmarks/compilation.py

Steps of the plain and of the compiled backbone take turns; printed are medians of the ratios within a round, and the
seconds of the first compiled step, before a branch is merged and the next task's one has grown, and after.
"""

import time
from collections.abc import Callable

import torch
import typer
from rich.console import Console
from rich.table import Table

from lamella.backbones import Backbone, load_backbone
from lamella.bench.timing import interleaved, ratio
from lamella.lowrank import Site, grow, merge
from lamella.precision import PRECISIONS, computing
from lamella.randomness import generator

CPU = torch.device("cpu")


def main(backbone: str = "vit_tiny_patch16_224", size: int = 128, batch: int = 32, repeats: int = 7) -> None:
    """Time all forms."""
    table = Table("precision", "compiled / plain step", "s, first step", "s, first step of task 2",
                  title=f"{backbone}, {size} px, batch {batch}, {torch.get_num_threads()} threads")  # fmt: skip
    for precision in PRECISIONS:
        plain, other = (load_backbone(backbone, size=size, weights="random") for _ in range(2))
        x = torch.randn(batch, 3, size, size, generator=generator(0, "images"))
        table.add_row(precision, *_figures(plain, other, x, precision, repeats))
    Console().print(table)


def _figures(plain: Backbone, other: Backbone, x: torch.Tensor, precision: str, repeats: int) -> tuple[str, str, str]:
    torch.compiler.reset()
    _adapted(plain, "task0")
    sites, compiled = _adapted(other, "task0"), torch.compile(other.model)
    forms = {"plain": lambda: _step(plain.model, x, precision), "compiled": lambda: _step(compiled, x, precision)}
    first = _seconds(forms["compiled"])
    times = interleaved(forms, repeats)
    merge(sites, "task0")
    _adapted(other, "task1")
    again = _seconds(forms["compiled"])
    return f"{ratio(times['compiled'], times['plain']):.2f}", f"{first:.0f}", f"{again:.0f}"


def _adapted(backbone: Backbone, task: str) -> tuple[Site, ...]:
    sites = backbone.sites("key+value")
    for branch in grow(sites, task, 10, generator=generator(0, task)):
        branch.requires_grad_(True)
    return sites


def _step(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, precision: str) -> None:
    with computing(CPU, precision):
        loss = model(x).float().square().mean()
    loss.backward()


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
