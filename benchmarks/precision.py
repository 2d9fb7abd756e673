"""A training step of low-rank branches in each precision, as a ratio to the frozen forward pass in float32.

    python benchmarks/precision.py
    python benchmarks/precision.py --backbone vit_base_patch16_224 --size 224 --batch 8

"fused attention" is torch's own choice of kernel, "as shipped" what `lamella` runs. All forms take turns in one
process; printed are medians over the repeats, in process time, so that other work on the machine counts less.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import typer
from rich.console import Console
from rich.table import Table

from lamella.backbones import load_backbone
from lamella.lowrank import grow
from lamella.precision import computing
from lamella.randomness import generator

CPU = torch.device("cpu")


def main(backbone: str = "vit_tiny_patch16_224", size: int = 128, batch: int = 64, repeats: int = 7) -> None:
    """Time all forms."""
    frozen = load_backbone(backbone, size=size, weights="random")
    x = torch.randn(batch, 3, size, size, generator=generator(0, "images"))
    with torch.inference_mode():
        frozen(x)
    adapted = load_backbone(backbone, size=size, weights="random")
    branches = grow(adapted.sites("key+value"), "task", 10, generator=generator(0, "branches"))
    for branch in branches:
        branch.requires_grad_(True)

    def forward(context: AbstractContextManager[object]) -> None:
        with torch.no_grad(), context:
            frozen(x)

    def step(context: AbstractContextManager[object]) -> None:
        with context:
            loss = adapted(x).float().square().mean()
        loss.backward()

    contexts: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "float32": lambda: computing(CPU, "float32"),
        "bf16, fused attention": lambda: torch.autocast("cpu", torch.bfloat16),
        "bf16, as shipped": lambda: computing(CPU, "bf16"),
    }
    forms = {(what, name): (run, make) for what, run in (("forward", forward), ("step", step))
             for name, make in contexts.items()}  # fmt: skip
    seconds: dict[tuple[str, str], list[float]] = {form: [] for form in forms}
    for _ in range(repeats):
        for form, (run, make) in forms.items():
            started = time.process_time()
            run(make())
            seconds[form].append(time.process_time() - started)
    unit = statistics.median(seconds["forward", "float32"])
    table = Table("", "forward, frozen", "training step", title=f"{backbone}, {size} px, batch {batch}")
    for name in contexts:
        cells = [statistics.median(seconds[what, name]) / unit for what in ("forward", "step")]
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    Console().print(table)
    print(f"1.00 is {unit:.3f} s of process time, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    typer.run(main)
