"""All tails as one batch against a tail after the other, and against the network alone: which form is the fastest here.

    python benchmarks/dlc_tails.py
    python benchmarks/dlc_tails.py --device cuda --batch 128 --repeats 50

Two loops: over adapted layers, and over whole kernels (base and plugin merged before each lane). All forms and the
plain network take turns within one process, so that a busy machine slows all of them; printed are medians of the ratios
of neighbours, with the middle half of them, and the largest relative difference of the features. The library always
takes the batch; where a ratio is well below 1 on your machine, that is worth an issue.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.table import Table
from torch import Tensor

from lamella.adapters.adapter import grow
from lamella.backbones import Backbone, load_backbone
from lamella.backbones.resnets import forward_from
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio_text
from lamella.experiments.bench.shown import show
from lamella.methods.dlc.plugins import Tails

BACKBONES = (("resnet32", 32), ("resnet18", 64), ("resnet18", 224))


@torch.no_grad()
def main(
    plugins: Annotated[list[int] | None, typer.Option(help="How many; may be given several times.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Images; may be given several times.")] = None,
    rank: int = 2,
    repeats: int = 15,
    layers: Annotated[str, typer.Option(help="last-conv, last-block, last-stage or last-two-stages.")] = "last-block",
    factorisation: str = "kernel",
    device: str = "cpu",
    large: Annotated[bool, typer.Option(help="Also ResNet-18 on images of 224 pixels.")] = False,
) -> None:
    """Time all forms of the tails."""
    table = Table(title=f"plugins of rank {rank} on the {layers}, {device}, {torch.get_num_threads()} threads")
    ratios = "loop / batched", "merged / batched", "all / network"
    for column in ("backbone", "plugins", "images", *ratios, "difference"):
        table.add_column(column, justify="left" if column == "backbone" else "right")
    for name, side in BACKBONES if large else BACKBONES[:2]:
        for count in plugins or [2, 10]:
            backbone = load_backbone(name, weights="random", size=side).to(device)
            for layer in backbone.model.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.weight.fill_(1.0)  # timm starts some at 0, which would hide the plugins
            tails = _tails(backbone, layers, count, rank, factorisation)
            for images in batch or [1, 16, 128]:
                told = _compare(backbone, tails, count, images, repeats, device)
                table.add_row(f"{name}, {side} pixels", str(count), str(images), *told)
    show(table, f"dlc-tails-{device}")


def _compare(backbone: Backbone, tails: Tails, plugins: int, images: int, repeats: int, device: str) -> list[str]:
    lanes = ["", *(f"plugin-{i}" for i in range(plugins))]
    side = backbone.transform.size
    x = torch.randn(images, 3, side, side, generator=generator(0, "images")).to(device)
    z = tails.trunk(x)
    forms: dict[str, Callable[[], Tensor]] = {
        "batched": lambda: tails(z, lanes),
        "loop": lambda: tails(z, lanes, "loop"),
        "merged": lambda: _merged(tails, z, lanes),
        "all": lambda: tails(tails.trunk(x), lanes),
        "network": lambda: backbone(x),
    }
    found = {form: compute() for form, compute in forms.items()}
    largest = found["loop"].abs().max()
    difference = max(float((found[form] - found["loop"]).abs().max() / largest) for form in ("batched", "merged"))
    seconds = interleaved(forms, repeats, warm=0)
    pairs = (("loop", "batched"), ("merged", "batched"), ("all", "network"))
    return [*(ratio_text(seconds[first], seconds[second]) for first, second in pairs), f"{difference:.0e}"]


def _merged(tails: Tails, z: Tensor, lanes: list[str]) -> Tensor:
    """The loop at its best: no branch acts, each lane's update is in the weight."""
    features: list[Tensor] = []
    for name in lanes:
        weights = [site.layer.weight.data for site in tails.sites]
        for site, weight in zip(tails.sites, weights, strict=True):
            for branch in site.layer.of(name):
                site.layer.weight.data = weight + branch.delta(weight.shape)
        features.append(forward_from(tails.model, tails.at, z))
        for site, weight in zip(tails.sites, weights, strict=True):
            site.layer.weight.data = weight
    return torch.stack(features, 1)


def _tails(backbone: Backbone, layers: str, plugins: int, rank: int, factorisation: str) -> Tails:
    tails = Tails(backbone, [layers], rank, factorisation)
    for i in range(plugins):
        draws = generator(0, "plugin", i)
        for branch in grow(tails.sites, f"plugin-{i}", rank, generator=draws, factorisation=factorisation):
            branch.B.copy_(0.1 * torch.randn(branch.B.shape, generator=draws))
    return tails


if __name__ == "__main__":
    typer.run(main)
