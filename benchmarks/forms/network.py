"""Whole networks: in each precision, with compiled blocks, and in two layouts of memory."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from forms.case import Case, Form, Seconds
from lamella.adapters.adapter import grow, merge
from lamella.adapters.sites import Site
from lamella.backbones import Backbone, load_backbone
from lamella.common.randomness import generator
from lamella.training import compilation as compiling
from lamella.training.footprint import kept_for_backward
from lamella.training.precision import PRECISIONS, computing
from lamella.training.recomputation import recomputed_blocks

CPU = torch.device("cpu")
RANK = 10
LARGE = (("resnet20", 28, 32), ("resnet32", 32, 64), ("resnet18", 64, 32), ("resnet18", 224, 8))
"""Name, side of the images, images of a batch."""


def precision(backbone: str = "vit_tiny_patch16_224", size: int = 128, batch: int = 64) -> Iterator[Case]:
    """A training step of low-rank branches in each precision; 1.00 is timm's frozen forward pass in float32.

    "Fused attention" is torch's own choice of kernel, "as shipped" what lamella runs.
    """
    frozen, adapted = (load_backbone(backbone, size=size, weights="random") for _ in range(2))
    _adapt(adapted, "task")
    x = images(batch, size)
    contexts: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "float32": lambda: computing(CPU, "float32"),
        "bf16, fused attention": lambda: torch.autocast("cpu", torch.bfloat16),
        "bf16, as shipped": lambda: computing(CPU, "bf16"),
    }

    def forward(context: Callable[[], AbstractContextManager[object]]) -> None:
        with torch.no_grad(), context():
            frozen.model(x)

    def step(context: Callable[[], AbstractContextManager[object]]) -> None:
        with context():
            loss = adapted(x).float().square().mean()
        loss.backward()

    forms: dict[str, Form] = {
        f"{what}, {name}": partial(run, context)
        for what, run in (("forward", forward), ("step", step))
        for name, context in contexts.items()
    }
    yield Case(f"{backbone}, {size} px", forms, "forward, float32", batch)


def compilation(
    backbone: str = "vit_tiny_patch16_224",
    size: int = 128,
    batch: int = 32,
    device: str = "cpu",
    backend: str = "inductor",
) -> Iterator[Case]:
    """A training step of low-rank branches with compiled blocks; 1.00 is the plain one.

    The seconds of the first compiled step stand beside it, and those of the first one after a branch was merged and the
    next task's one has grown under another name. Torch keeps what it compiled on disk, which shortens a first step the
    next time; with TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 it is what it is on a new machine.
    """
    with _compiling_by(backend):
        for name in PRECISIONS:
            plain, other = (load_backbone(backbone, size=size, weights="random").to(device) for _ in range(2))
            with compiling.compiled_blocks(other, batch):
                yield _compiled_case(name, plain, other, images(batch, size).to(device))


def _compiled_case(precision: str, plain: Backbone, other: Backbone, x: Tensor) -> Case:
    _adapt(plain, "task0")
    sites = _adapt(other, "task0")
    forms: dict[str, Form] = {
        "plain": partial(_step, plain, x, precision),
        "compiled": partial(_step, other, x, precision),
    }
    first = _seconds(forms["compiled"])

    def notes(seconds: Seconds) -> dict[str, dict[str, str]]:
        merge(sites, "task0")
        _adapt(other, "task1")
        again = _seconds(forms["compiled"])
        return {"compiled": {"s, first step": f"{first:.1f}", "s, first step of task 2": f"{again:.1f}"}}

    return Case(precision, forms, "plain", len(x), x.device.type == "cpu", notes)


@contextmanager
def _compiling_by(backend: str) -> Iterator[None]:
    before, compiling.BACKEND = compiling.BACKEND, backend
    try:
        yield
    finally:
        compiling.BACKEND = before


def recomputation(backbone: str = "vit_tiny_patch16_224", size: int = 128, batch: int = 32) -> Iterator[Case]:
    """A training step of low-rank branches whose blocks are computed twice (`fit.recompute`); 1.00 is the plain one.

    Beside it stands what autograd keeps for the backward pass, without the network's own tensors.
    """
    plain, other = (load_backbone(backbone, size=size, weights="random") for _ in range(2))
    x = images(batch, size)
    with recomputed_blocks(other):
        forms: dict[str, Form] = {}
        kept: dict[str, dict[str, str]] = {}
        for form, model in (("plain", plain), ("computed twice", other)):
            _adapt(model, "task")
            forms[form] = partial(_step, model, x, "float32")
            with kept_for_backward(model.model.parameters()) as bytes_kept:
                model(x).square().mean()
            kept[form] = {"MB kept": f"{bytes_kept() / 1e6:.1f}"}
        yield Case(f"{backbone}, {size} px", forms, "plain", batch, notes=lambda seconds: kept)


def memory_layout(large: bool = True) -> Iterator[Case]:
    """Convolutional networks with channels last, as `load_backbone` lays them out; 1.00 is channels first."""
    for name, size, batch in LARGE if large else (("resnet20", 28, 2),):
        first = load_backbone(name, size=size, weights="random").model.train().to(memory_format=torch.contiguous_format)
        last = copy.deepcopy(first).to(memory_format=torch.channels_last)
        x = images(batch, size)
        with torch.no_grad():
            apart = float((first(x) - last(x)).abs().max() / first(x).abs().max())
        notes = {"channels last": {"features differ by": f"{apart:.0e}"}}
        for numbers in PRECISIONS:
            for what, run in (("forward", _forward), ("step", _whole_step)):
                forms = {
                    "channels first": partial(run, first, x, numbers),
                    "channels last": partial(run, last, x, numbers),
                }
                title = f"{name}, {size} px, {numbers}, {what}"
                yield Case(title, forms, "channels first", batch, False, lambda seconds, notes=notes: notes)


def images(n: int, size: int) -> Tensor:
    """Noise of shape (n, 3, size, size), the same in every comparison."""
    return torch.randn(n, 3, size, size, generator=generator(0, "images"))


def _adapt(backbone: Backbone, task: str) -> tuple[Site, ...]:
    sites = backbone.sites("key+value")
    for branch in grow(sites, task, RANK, generator=generator(0, task)):
        branch.requires_grad_(True)
    return sites


def _step(model: Backbone, x: Tensor, precision: str) -> None:
    with computing(x.device, precision):
        loss = model(x).float().square().mean()
    loss.backward()


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor, precision: str) -> None:
    with computing(CPU, precision):
        model(x)


def _whole_step(model: nn.Module, x: Tensor, precision: str) -> None:
    weights = list(model.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    with computing(CPU, precision):
        loss = model(x).float().square().mean()
    torch.autograd.grad(loss, weights, allow_unused=True)


def _seconds(run: Form) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
