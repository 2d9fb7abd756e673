"""Predictions of methods whose branches cannot be folded into the weights."""

import statistics
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from forms.case import Case, Form
from forms.network import images
from lamella.adapters.adapter import grow
from lamella.backbones import Backbone, load_backbone
from lamella.backbones.resnets import forward_from
from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.data.scenario import Task
from lamella.learner.learner import Learner
from lamella.methods.dlc.plugins import Tails

CLASSES = 10
"""Of a task."""
NETWORKS = (("resnet32", 32), ("resnet18", 64), ("resnet18", 224))


def duallora_inference(
    backbone: str = "vit_tiny_patch16_224",
    size: int = 128,
    tasks: int = 10,
    energy: float = 1.0,
    batch: int = 32,
    device: str = "cpu",
) -> Iterator[Case]:
    """DualLoRA's prediction, whose gated branches stay, and InfLoRA's; 1.00 is timm's frozen forward pass.

    Time does not depend on what is learned, only on how many branches there are and how wide: so weights and images are
    random. By default every direction of a task's few images is kept (energy 1), which gives each residual branch the
    rank that it may have at most: a bound, where trained bases are smaller.
    """
    table = {"name": backbone, "weights": "random", "size": size, "crop": 1.0}
    plain = load_backbone(backbone, weights="random", size=size, crop=1.0).to(device)
    options = {"epochs": 1, "batch_size": 2 * CLASSES}
    methods: dict[str, dict[str, Any]] = {"duallora": {"energy": energy}, "inflora": {}}
    learners = {
        name: Learner.create(backbone=table, method={"name": name, **options, **own}, fit={"device": device})
        for name, own in methods.items()
    }
    x = images(batch, size).to(device)
    forms: dict[str, Form] = {"frozen forward": _no_gradients(lambda: plain.model(x))}
    forms |= {name: _no_gradients(lambda own=own: own.method.predict(x)) for name, own in learners.items()}
    for number in range(tasks):
        for learner in learners.values():
            fit = learner.fit()
            fit.begin(str(number))
            learner.method.learn(_task(number, size), fit)
        if number + 1 in (1, max(1, tasks // 2), tasks):
            rank = {"duallora": {"rank a layer": f"{_residual_rank(learners['duallora'].method, number + 1):.0f}"}}
            yield Case(
                f"after {number + 1} tasks", forms, "frozen forward", batch, device == "cpu", lambda s, r=rank: r
            )


def _no_gradients(form: Form) -> Form:
    return torch.no_grad()(form)


def _task(number: int, size: int) -> Task:
    classes = tuple(range(number * CLASSES, (number + 1) * CLASSES))
    x = torch.randn(2 * CLASSES, 3, size, size, generator=generator(0, "task", number))
    return Task(
        number, f"task {number}", classes, tuple(map(str, classes)), TensorSet(x, torch.tensor(classes).repeat(2))
    )


def _residual_rank(method: Any, tasks: int) -> float:
    """Mean number of directions that an adapted layer's residual branches reduce its input to."""
    found = [[b for n in range(tasks) for b in site.layer.of(f"residual-{n}")] for site in method.sites]
    return statistics.mean(sum(branch.rank for branch in own) for own in found)


def dlc_tails(
    plugins: Annotated[list[int] | None, typer.Option(help="How many; may be given several times.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Images; may be given several times.")] = None,
    rank: int = 2,
    layers: Annotated[str, typer.Option(help="last-conv, last-block, last-stage or last-two-stages.")] = "last-block",
    factorisation: str = "kernel",
    device: str = "cpu",
    large: Annotated[bool, typer.Option(help="Also ResNet-18 on images of 224 pixels.")] = False,
    small: Annotated[bool, typer.Option(help="ResNet-32 alone.")] = False,
) -> Iterator[Case]:
    """All tails of DLC as one batch (1.00) and a tail after the other; then all of a prediction beside the network.

    "Loop" goes over adapted layers, "merged" over whole kernels, base and plugin merged before each lane. The library
    always takes the batch; where a ratio is well below 1 on your machine, that is worth an issue.
    """
    for name, side in NETWORKS if large else NETWORKS[: 1 if small else 2]:
        for count in plugins or [2, 10]:
            backbone = load_backbone(name, weights="random", size=side).to(device)
            tails = _tails(backbone, layers, count, rank, factorisation)
            for n in batch or [1, 16, 128]:
                yield from _tail_cases(
                    f"{name}, {side} px, {count} plugins, {n} images", backbone, tails, count, n, side
                )


def _tail_cases(title: str, backbone: Backbone, tails: Tails, plugins: int, n: int, side: int) -> Iterator[Case]:
    lanes = ["", *(f"plugin-{i}" for i in range(plugins))]
    with torch.no_grad():
        x = images(n, side).to(next(backbone.parameters()).device)
        z = tails.trunk(x)
        forms: dict[str, Callable[[], Tensor]] = {
            "batched": lambda: tails(z, lanes),
            "loop": lambda: tails(z, lanes, "loop"),
            "merged": lambda: _merged(tails, z, lanes),
        }
        found = {form: compute() for form, compute in forms.items()}
        largest = found["loop"].abs().max()
        apart = {f: float((found[f] - found["loop"]).abs().max() / largest) for f in ("batched", "merged")}
        notes = {form: {"difference": f"{away:.0e}"} for form, away in apart.items()}
        yield Case(title, forms, "batched", n, False, lambda seconds: notes)
        whole: dict[str, Form] = {"network": lambda: backbone(x), "all lanes": lambda: tails(tails.trunk(x), lanes)}
        yield Case("", whole, "network", n, False)


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


@torch.no_grad()
def _tails(backbone: Backbone, layers: str, plugins: int, rank: int, factorisation: str) -> Tails:
    for layer in backbone.model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.fill_(1.0)  # timm starts some at 0, which would hide the plugins
    tails = Tails(backbone, [layers], rank, factorisation)
    for i in range(plugins):
        draws = generator(0, "plugin", i)
        for branch in grow(tails.sites, f"plugin-{i}", rank, generator=draws, factorisation=factorisation):
            branch.B.copy_(0.1 * torch.randn(branch.B.shape, generator=draws))
    return tails
