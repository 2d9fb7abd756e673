"""Adapters of many tasks in one pass, with coefficients of their own for each sample."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from forms.case import Case, Form
from forms.network import images
from lamella.adapters.adapter import Site, grow, using
from lamella.backbones import Backbone, load_backbone
from lamella.common.randomness import generator

Features = Callable[[Tensor], Tensor]


def mixed(
    backbone: str = "vit_tiny_patch16_224",
    size: int = 128,
    batch: int = 64,
    held: Annotated[list[int] | None, typer.Option(help="Adapters; may be given several times.")] = None,
    rank: int = 10,
    device: str = "cpu",
) -> Iterator[Case]:
    """Adapters on keys and values, of which one, two or all act for each sample; 1.00 is the same pass without them.

    "One, dense" computes all branches and multiplies by zero what does not act, as training does. "Products" counts
    multiplications of matrices in proportion to the pass without adapters, attention left out. The difference is that
    of the features from the dense form's, as a share of the largest feature.
    """
    network = load_backbone(backbone, weights="random", size=size, crop=1.0).to(device)
    sites = network.sites("key+value")
    x = images(batch, size).to(device)
    there = 0
    for count in held or [1, 10, 50]:
        for number in range(there, count):
            _grow(sites, number, rank)
        there = max(there, count)
        yield _case(network, sites, x, count, device)


def _case(network: Backbone, sites: tuple[Site, ...], x: Tensor, count: int, device: str) -> Case:
    tops = {"one": 1} | ({"two": 2} if count > 2 else {}) | ({"all": count} if count > 1 else {})
    weights = {name: _weights(len(x), count, top, device) for name, top in tops.items()}
    forms: dict[str, Features] = {"frozen": _pass(network, sites, {}, dense=False)}
    forms |= {name: _pass(network, sites, own, dense=False) for name, own in weights.items()}
    dense = {name: _pass(network, sites, own, dense=True) for name, own in weights.items()}
    forms |= {"one, dense": dense["one"]} if count > 1 else {}
    products = {name: _products(lambda own=form: own(x)) for name, form in forms.items()}
    apart = {name: _apart(forms[name](x), dense[name](x)) for name in weights}
    notes = {
        name: {"products": f"{products[name] / products['frozen']:.3f}", "difference": apart.get(name, "")}
        for name in forms
    }
    timed: dict[str, Form] = {name: (lambda own=form: own(x)) for name, form in forms.items()}
    return Case(f"{count} held", timed, "frozen", len(x), device == "cpu", lambda seconds: notes)


def _grow(sites: tuple[Site, ...], number: int, rank: int) -> None:
    draws = generator(0, "adapter", number)
    for branch in grow(sites, f"task{number}", rank, generator=draws):
        branch.B.data.copy_(0.02 * torch.randn(branch.B.shape, generator=draws))


def _weights(samples: int, count: int, top: int, device: str) -> dict[str, Tensor]:
    """By adapter its coefficients (samples,), of which so many of each sample are not zero."""
    draws = generator(0, "weights", count, top)
    order = torch.rand(samples, count, generator=draws).argsort(1)
    found = torch.where(order < top, 0.5 + torch.rand(samples, count, generator=draws), 0.0).to(device)
    return {f"task{k}": found[:, k] for k in range(count)}


def _pass(network: Backbone, sites: tuple[Site, ...], weights: Mapping[str, Tensor], *, dense: bool) -> Features:
    """A pass under these coefficients; where gradients could be recorded, every branch is computed."""

    def forward(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(dense), using(sites, weights):
            return network(x)

    network.requires_grad_(False)
    return forward


def _apart(found: Tensor, wanted: Tensor) -> str:
    return f"{float((found - wanted).abs().max() / wanted.abs().max()):.0e}"


def _products(form: Form) -> int:
    """Count the multiplications of matrices, also of those that are added in place."""

    def added(y: Any, first: Any, second: Any, **rest: Any) -> int:
        return 2 * first.numel() * second[-1]  # shapes

    aten: Any = torch.ops.aten
    with FlopCounterMode(display=False, custom_mapping={aten.addmm_: added, aten.baddbmm_: added}) as counted:
        form()
    return counted.get_total_flops()
