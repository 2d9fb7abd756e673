"""InfLoRA's statistics: the pass over a task's images, and the linear algebra on what it found."""

import copy
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from forms.case import Case, Form, Seconds
from forms.network import images as noise
from lamella.adapters.adapter import watch
from lamella.backbones import load_backbone
from lamella.common.randomness import generator
from lamella.memory.subspace import SecondMoment, Subspace, orthonormal
from lamella.methods import METHODS

STEP, PASSES = 1.88, 2
"""Forward passes that a training step costs an image at least, and passes for statistics in a task."""
FORWARD = "frozen forward"


class _PerImage(SecondMoment):
    """A d x d matrix of each image, then their sum."""

    @torch.no_grad()
    def forward(self, x: Tensor, mask: Tensor | None = None) -> None:
        self.total += torch.bmm(x.mT, x).sum(0)
        self.count += x.shape[0] * x.shape[1]


def second_moments(
    backbone: str = "vit_tiny_patch16_224",
    size: int = 128,
    batch: int = 32,
    images: Annotated[int, typer.Option(help="Of a task; 5000 and 20 epochs are CIFAR-100's.")] = 5000,
    epochs: int = 20,
    device: str = "cpu",
) -> Iterator[Case]:
    """What InfLoRA's statistics cost; 1.00 is the frozen forward pass of timm's own model.

    Pass: "as shipped" ends at the last adapted layer and adds one flat product a layer, shared by queries, keys and
    values; "whole pass" runs to the end; "authors' form" makes a matrix of each image first, then sums them. Linear
    algebra, of a task and all layers: the design of A and the update of what is protected, with an empty memory and
    with one that holds a quarter of the directions; beside it one singular value decomposition a layer. "Share of a
    task" is in one of so many images and epochs whose step takes 1.88 forward passes an image, which no step falls
    below.
    """
    with torch.no_grad():
        frozen, adapted = (load_backbone(backbone, weights="random", size=size).to(device) for _ in range(2))
        method: Any = METHODS["inflora"](adapted).to(device)
        x = noise(batch, size).to(device)
        processor = device == "cpu"
        show, whole = lambda: adapted.show(x, method.sites), lambda: adapted.model(x)
        passes: dict[str, Form] = {
            FORWARD: lambda: frozen.model(x),
            "as shipped": lambda: _moments(method, SecondMoment, show),
            "whole pass": lambda: _moments(method, SecondMoment, whole),
            "authors' form": lambda: _moments(method, _PerImage, whole),
        }
        yield Case("pass", passes, FORWARD, batch, processor)

        found = _moments(method, SecondMoment, show)
        algebra: dict[str, Form] = {FORWARD: passes[FORWARD]}
        for memory in ("empty", "a quarter"):
            held = {name: _space(G, memory) for name, G in found.items()}
            algebra[f"design, {memory}"] = partial(_design, method, found, held)
            algebra[f"update, {memory}"] = partial(_update, method, found, held)
        algebra["singular value decomposition"] = lambda: [torch.linalg.svd(G) for G in found.values()]

        def notes(seconds: Seconds) -> dict[str, dict[str, str]]:
            medians = {form: statistics.median(own) for form, own in seconds.items()}
            task = medians.pop(FORWARD) / batch * images * (STEP * epochs + PASSES)
            told = {
                form: {"seconds": f"{own:.3f}", "share of a task": f"{own / task:.4%}"} for form, own in medians.items()
            }
            return {form: columns for form, columns in told.items()}

        yield Case("linear algebra", algebra, FORWARD, batch, processor, notes)


def _moments(method: Any, kind: type[SecondMoment], run: Callable[[], Any]) -> dict[str, Tensor]:
    with watch(method.sites, lambda layer: kind(layer.weight.shape[1]).to(layer.weight.device)) as observers:
        run()
    return {name: observer.mean for name, observer in observers.items()}


def _space(G: Tensor, memory: str) -> Subspace:
    space = Subspace(len(G)).to(G.device)
    if memory != "empty":
        draws = torch.randn(len(G), len(G) // 4, generator=generator(0, "memory"))
        space.extend(orthonormal(draws.to(G)))
    return space


def _design(method: Any, found: dict[str, Tensor], held: dict[str, Subspace]) -> None:
    for name, G in found.items():
        method.free_directions(G, held[name])


def _update(method: Any, found: dict[str, Tensor], held: dict[str, Subspace]) -> None:
    for name, G in found.items():
        method.rule.protect(copy.deepcopy(held[name]), G, 1, first=held[name].dimension == 0)
