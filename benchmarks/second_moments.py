"""What InfLoRA's statistics cost: the pass over a task's images, and the linear algebra on what it found.

    OMP_NUM_THREADS=1 python benchmarks/second_moments.py vit_tiny_patch16_224 --size 128
    OMP_NUM_THREADS=1 python benchmarks/second_moments.py vit_base_patch16_224 --size 224 --batch 8

First table: 1.00 is the frozen forward pass of timm's own model. "as shipped" ends at the last adapted layer and adds
one flat product a layer, shared by queries, keys and values; "whole pass" runs to the end; "authors' form" makes a
matrix of each image first (`bmm`), then sums them. Second table: seconds a task over all layers for the design of A and
for the update of what is protected, with an empty memory and with one that holds a quarter of the directions; beside it
one singular value decomposition a layer. "share" is that of design and update together in a task of so many images and
epochs whose step takes 1.88 forward passes an image, which no step falls below, and two passes for statistics.

All forms take turns in one process; process time (wall time on a GPU), medians over the rounds.
"""

import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.adapters.adapter import watch
from lamella.backbones import load_backbone
from lamella.common.files import write_json
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio_text
from lamella.memory.subspace import SecondMoment, Subspace, orthonormal
from lamella.methods.inflora import InfLoRA

STEP, PASSES = 1.88, 2


class _PerImage(SecondMoment):
    """A d x d matrix of each image, then their sum."""

    @torch.no_grad()
    def forward(self, x: Tensor, mask: Tensor | None = None) -> None:
        self.total += torch.bmm(x.mT, x).sum(0)
        self.count += x.shape[0] * x.shape[1]


@torch.no_grad()
def main(
    backbone: Annotated[str, typer.Argument()] = "vit_tiny_patch16_224",
    size: int = 128,
    batch: int = 32,
    repeats: int = 9,
    images: Annotated[int, typer.Option(help="Of a task; 5000 and 20 epochs are CIFAR-100's.")] = 5000,
    epochs: int = 20,
    device: str = "cpu",
    out: Path = Path("runs/benchmarks"),
) -> None:
    """Print both tables."""
    frozen, adapted = (load_backbone(backbone, weights="random", size=size).to(device) for _ in range(2))
    method = InfLoRA(adapted).to(device)
    x = torch.randn(batch, 3, size, size, generator=generator(0, "images")).to(device)
    moments = lambda kind, run: lambda: _moments(method, kind, run)  # noqa: E731
    passes: dict[str, Callable[[], Any]] = {
        "frozen forward": lambda: frozen.model(x),
        "as shipped": moments(SecondMoment, lambda: adapted.show(x, method.sites)),
        "whole pass": moments(SecondMoment, lambda: adapted.model(x)),
        "authors' form": moments(_PerImage, lambda: adapted.model(x)),
    }
    pass_seconds = interleaved(passes, repeats, processor=device == "cpu")
    found = _moments(method, SecondMoment, lambda: adapted.show(x, method.sites))
    algebra: dict[str, Callable[[], Any]] = {}
    for memory in ("empty", "a quarter"):
        held = {name: _space(G, memory) for name, G in found.items()}
        algebra[f"design, {memory}"] = lambda held=held: [method._design(G, held[n]) for n, G in found.items()]
        algebra[f"update, {memory}"] = lambda held=held: [
            method.rule.protect(copy.deepcopy(held[n]), G, 1, first=held[n].dimension == 0) for n, G in found.items()
        ]
    algebra["singular value decomposition"] = lambda: [torch.linalg.svd(G) for G in found.values()]
    algebra_seconds = interleaved(algebra, repeats, processor=device == "cpu")
    setting = {"backbone": backbone, "size": size, "batch": batch, "device": device, "images": images, "epochs": epochs,
               "threads": torch.get_num_threads(), "torch": torch.__version__}  # fmt: skip
    result = {"setting": setting, "passes": pass_seconds, "algebra": algebra_seconds}
    write_json(out / f"second-moments-{backbone}-{device}.json", result)
    forward = statistics.median(pass_seconds["frozen forward"]) / batch
    title = f"{backbone}, {size} px, {batch} images, {device}, {torch.get_num_threads()} threads"
    _print(pass_seconds, algebra_seconds, forward * images * (STEP * epochs + PASSES), title)


def _moments(method: InfLoRA, kind: type[SecondMoment], run: Callable[[], Any]) -> dict[str, Tensor]:
    with watch(method.sites, lambda layer: kind(layer.weight.shape[1]).to(layer.weight.device)) as observers:
        run()
    return {name: observer.mean for name, observer in observers.items()}


def _space(G: Tensor, memory: str) -> Subspace:
    space = Subspace(len(G)).to(G.device)
    if memory != "empty":
        draws = torch.randn(len(G), len(G) // 4, generator=generator(0, "memory"))
        space.extend(orthonormal(draws.to(G)))
    return space


def _print(passes: dict[str, list[float]], algebra: dict[str, list[float]], task: float, title: str) -> None:
    table = Table("pass", "ratio", title=title)
    unit = passes["frozen forward"]
    for form, own in passes.items():
        table.add_row(form, ratio_text(own, unit))
    Console(width=120).print(table)
    table = Table("linear algebra, all layers", "seconds", title=f"a task of {task:.0f} s at least")
    medians = {form: statistics.median(own) for form, own in algebra.items()}
    for form, own in medians.items():
        table.add_row(form, f"{own:.3f}")
    for memory in ("empty", "a quarter"):
        share = (medians[f"design, {memory}"] + medians[f"update, {memory}"]) / task
        table.add_row(f"share, {memory}", f"{100 * share:.3f} %")
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
