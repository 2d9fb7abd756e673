"""Ten plugins on one image: all tails as one batch against a tail after the other, and against the network alone.

    python benchmarks/dlc_tails.py
    python benchmarks/dlc_tails.py --device cuda --batch 128 --repeats 50

Both forms and the plain network take turns within one process, so that a busy machine slows all of them; printed are
medians of the ratios of neighbours, with the middle half of them, and the largest relative difference of the features.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.backbones import Backbone, load_backbone
from lamella.lowrank import grow
from lamella.methods.plugins import Tails
from lamella.randomness import generator

BACKBONES = (("resnet32", 32), ("resnet18", 32), ("resnet18", 224))


@torch.no_grad()
def main(
    plugins: int = 10,
    rank: int = 2,
    batch: int = 32,
    repeats: int = 15,
    layers: Annotated[str, typer.Option(help="last-conv, last-block, last-stage or last-two-stages.")] = "last-block",
    factorisation: str = "kernel",
    device: str = "cpu",
    large: Annotated[bool, typer.Option(help="Also ResNet-18 on images of 224 pixels.")] = False,
) -> None:
    """Time both forms of the tails."""
    table = Table(title=f"{plugins} plugins of rank {rank} on the {layers}, {batch} images, {device}")
    for column in ("backbone", "loop / batched", "batched / network", "loop / network", "difference"):
        table.add_column(column, justify="left" if column == "backbone" else "right")
    lanes = ["", *(f"plugin-{i}" for i in range(plugins))]
    for name, side in BACKBONES if large else BACKBONES[:2]:
        stem = "small" if (name, side) == ("resnet18", 32) else "model"
        backbone = load_backbone(name, weights="random", size=side, stem=stem).to(device)
        for layer in backbone.model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.fill_(1.0)  # timm starts some at 0, which would hide the plugins
        tails = _tails(backbone, layers, plugins, rank, factorisation)
        x = torch.randn(batch, 3, side, side, generator=generator(0, "images")).to(device)
        forms: dict[str, Callable[[], Tensor]] = {
            "batched": lambda x=x, tails=tails: tails(tails.trunk(x), lanes),
            "loop": lambda x=x, tails=tails: tails(tails.trunk(x), lanes, "loop"),
            "network": lambda x=x, backbone=backbone: backbone(x),
        }
        difference = (forms["batched"]() - forms["loop"]()).abs().max() / forms["loop"]().abs().max()
        seconds = {form: [] for form in forms}
        for _ in range(repeats):
            for form, compute in forms.items():
                seconds[form].append(_seconds(compute, device))
        pairs = (("loop", "batched"), ("batched", "network"), ("loop", "network"))
        told = [_ratio(seconds[first], seconds[second]) for first, second in pairs]
        table.add_row(f"{name}, {side} pixels", *told, f"{float(difference):.0e}")
    Console().print(table)


def _tails(backbone: Backbone, layers: str, plugins: int, rank: int, factorisation: str) -> Tails:
    tails = Tails(backbone, [layers], rank, factorisation)
    for i in range(plugins):
        draws = generator(0, "plugin", i)
        for branch in grow(tails.sites, f"plugin-{i}", rank, generator=draws, factorisation=factorisation):
            branch.B.copy_(0.1 * torch.randn(branch.B.shape, generator=draws))
    return tails


def _seconds(compute: Callable[[], Tensor], device: str) -> float:
    started = time.perf_counter()
    compute()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _ratio(first: list[float], second: list[float]) -> str:
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    typer.run(main)
