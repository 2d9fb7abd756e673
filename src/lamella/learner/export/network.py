"""Converts a learned method into one network with fixed weights and a linear classifier on its features.

The method gives its linear classifier. The branches that act, and their coefficients, are observed in one prediction.
The conversion is not possible if they differ from sample to sample, or if samples pass through the network repeatedly.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, watch
from lamella.adapters.branches import Adapted, Branch, Coefficient
from lamella.backbones import Backbone
from lamella.data.samples import Samples
from lamella.learner.export.check import random_samples
from lamella.methods import Method

__all__ = ["ActingBranch", "Fixed", "acting_branches", "adapted_layers", "base_of", "fixed", "update"]


class ActingBranch(NamedTuple):
    """A branch that acts in every prediction.

    Attributes:
        adapter: the name of its adapter.
        branch: the branch.
        coefficient: the number that it is multiplied by.
    """

    adapter: str
    branch: Branch
    coefficient: float


class Fixed(nn.Module):
    """One network with fixed weights: a backbone without branches, and a linear classifier.

    Args:
        backbone: the feature extractor.
        classifier: the linear classifier on its features.
    """

    def __init__(self, backbone: Backbone, classifier: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, x: Samples) -> Tensor:
        """(n, classes) logits of n samples, as the backbone takes them."""
        return self.classifier(self.backbone(x))


def base_of(method: Method, readout: str) -> Method:
    """Return the method whose prediction is a readout.

    Args:
        method: the method of the model.
        readout: "" for the method itself, "base" for the one it is built on, "base.base" for the next, and so on.

    Raises:
        ValueError: there is no such readout.
    """
    there = [""]
    while readout != there[-1]:
        if method.base is None:
            raise ValueError(f"this model has no readout '{readout}'; there are {', '.join(map(repr, there))}")
        method = method.base
        there.append(f"{there[-1]}.base".lstrip("."))
    return method


def fixed(method: Method) -> Fixed:
    """Convert a method into one network with fixed weights; predictions are the same up to rounding.

    Raises:
        ValueError: the method is not one network with a linear classifier.
    """
    acting = acting_branches(method)
    classifier = _classifier(method)
    backbone = deepcopy(method.backbone)
    for name, layer in adapted_layers(backbone.model).items():
        wide = layer.weight.double()
        layer.weight.data.copy_(wide + update(layer.weight.shape, acting[name]))
        layer.branches = nn.ModuleDict()
        layer.acting = None
    return Fixed(backbone, classifier).eval().requires_grad_(False)


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


@torch.no_grad()
def acting_branches(method: Method) -> dict[str, list[ActingBranch]]:
    """Return for each adapted layer the branches that act in every prediction.

    Raises:
        ValueError: the branches that act, or their coefficients, depend on the sample.
    """
    layers = adapted_layers(method.backbone.model)
    passes: dict[Adapted, list[Any]] = {layer: [] for layer in layers.values()}
    sites = [Site(name, layer, slice(0, layer.weight.shape[0])) for name, layer in layers.items()]
    with watch(sites, lambda layer: lambda x: passes[layer].append(layer.acting), padding_too=True):
        method.predict(random_samples(method.backbone, 2))
    if any(len(seen) > 1 for seen in passes.values()):
        raise _per_sample(method)
    chosen = {name: passes[layer][0] if passes[layer] else {} for name, layer in layers.items()}
    return {name: _acting(method, layer, chosen[name]) for name, layer in layers.items()}


def _acting(method: Method, layer: Adapted, chosen: Mapping[str, Coefficient] | None) -> list[ActingBranch]:
    coefficients = dict.fromkeys(layer.branches, 1.0) if chosen is None else chosen
    found = [(name, branch, c) for name, c in coefficients.items() for branch in layer.of(name)]
    numbers = [(name, branch, _number(c)) for name, branch, c in found if branch.gate is None]
    acting = [ActingBranch(name, branch, number) for name, branch, number in numbers if number is not None]
    if len(acting) < len(found):
        raise _per_sample(method)
    return acting


def _number(coefficient: Coefficient) -> float | None:
    if isinstance(coefficient, Tensor):
        return float(coefficient) if coefficient.numel() == 1 else None
    return None if callable(coefficient) else coefficient


def _per_sample(method: Method) -> ValueError:
    noun = method.backbone.transform.noun
    return ValueError(
        f"this method weighs its adapters anew for each {noun}, so they cannot become part of the weights; "
        "export the graph with --format onnx"
    )


def update(shape: Sequence[int], acting: Sequence[ActingBranch]) -> Tensor:
    """Return the sum that branches add to a weight, in float64.

    Args:
        shape: the shape of the weight.
        acting: the branches.
    """
    total = torch.zeros(*shape, dtype=torch.float64)
    for _, branch, coefficient in acting:
        total[branch.rows] += coefficient * deepcopy(branch).cpu().double().delta(shape)
    return total


def _classifier(method: Method) -> nn.Linear:
    """Return the method's linear classifier on the CPU.

    Raises:
        ValueError: it has none; the message says why, and names another export.
    """
    try:
        return method.linear_classifier()
    except ValueError as error:
        further = "" if method.base is None else ", or with --readout base the heads below, which predict otherwise"
        raise ValueError(f"{error}; export the graph with --format onnx{further}") from None
