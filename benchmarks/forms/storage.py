"""Frozen weights in float32 or in few bits, forwards and in a training step, beside what torch has for 8 bits."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from forms.case import Case, Form
from forms.network import images
from lamella.adapters.adapter import grow
from lamella.adapters.few_bits import STORAGES, Int8Linear
from lamella.backbones import Backbone, load_backbone
from lamella.common.randomness import generator
from lamella.training.footprint import kept_for_backward


def storage(
    backbone: str = "vit_tiny_patch16_224",
    size: int = 128,
    batch: int = 64,
    weights: str = "random",
    rank: int = 10,
    others: bool = False,
    device: str = "cpu",
) -> Iterator[Case]:
    """Forward passes, and training steps of branches on keys and values; 1.00 is the forward pass in float32.

    "MB" are those of the weights, "kept" those that autograd keeps of a step. The difference is that of the features
    from those in float32, as a share of their norm. With "others": "packed" is torch's product of floats with weights
    in 8 bits, "dynamic" its quantised layers, whose inputs are rounded to 8 bits too; neither has a backward pass.
    """
    networks = {kind: load_backbone(backbone, weights=weights, size=size, storage=kind).to(device) for kind in STORAGES}
    x = images(batch, size).to(device)
    passes: dict[str, Callable[[], Tensor]] = {kind: _forward(network.model, x) for kind, network in networks.items()}
    held = {kind: _megabytes(network.model) for kind, network in networks.items()}
    if others:
        packed = copy.deepcopy(networks["int8"].model)
        for name, layer in list(packed.named_modules()):
            if isinstance(layer, Int8Linear):
                packed.set_submodule(name, _Packed(layer))
        plain = copy.deepcopy(networks["float32"].model)
        dynamic = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
        passes |= {"int8, packed": _forward(packed, x), "int8, dynamic": _forward(dynamic, x)}
    wanted = passes["float32"]()
    notes = {
        kind: {"MB": f"{held[kind]:.1f}" if kind in held else "", "difference": _apart(form(), wanted)}
        for kind, form in passes.items()
    }
    forms: dict[str, Form] = {kind: form for kind, form in passes.items()}
    for kind, network in networks.items():
        step, kept = _step(network, x, rank)
        forms[f"step, {kind}"] = step
        notes[f"step, {kind}"] = {"kept": f"{kept / 1e6:.1f}"}
    yield Case(backbone, forms, "float32", batch, device == "cpu", lambda seconds: notes)


class _Packed(nn.Module):
    """A linear layer by torch's product of floats with weights in 8 bits."""

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        self.levels, self.scales, self.bias = layer.codes, layer.scales[:, 0], layer.bias

    def forward(self, x: Tensor) -> Tensor:
        rows: Any = torch.ops.aten._weight_int8pack_mm(x.flatten(0, -2).contiguous(), self.levels, self.scales)
        y = rows.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


def _forward(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A whole pass, to the end of all tokens."""

    def forward() -> Tensor:
        with torch.no_grad():
            return network(x)

    return forward


def _step(network: Backbone, x: Tensor, rank: int) -> tuple[Form, int]:
    """A step of branches, and the bytes that autograd keeps of it."""
    branches = grow(network.sites("key+value"), "new", rank, generator=generator(0, "storage"))
    factors = [factor.requires_grad_(True) for branch in branches for factor in branch.factors]

    def step() -> None:
        with torch.enable_grad():
            torch.autograd.grad(network(x).square().mean(), factors)

    with torch.enable_grad(), kept_for_backward([*network.parameters(), *network.buffers(), x]) as kept:
        network(x).square().mean()
        bytes_kept = kept()
    return step, bytes_kept


def _megabytes(model: nn.Module) -> float:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 1e6


def _apart(found: Tensor, wanted: Tensor) -> str:
    return f"{float((found - wanted).norm() / wanted.norm()):.1e}"
