"""Converts a learned method into one network with fixed weights and a classifier of few tensors on its features.

The method gives its classifier. The branches that act, and their coefficients, are observed in one prediction.
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
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = ["WHOLE", "ActingBranch", "Fixed", "acting_branches", "adapted_layers", "base_of", "fixed", "update"]

WHOLE = {"image": "timm", "text": "hf"}
"""By what a model takes, the format that holds all weights of its network."""
_OTHERWISE = {"image": "export the graph with --format onnx"}
_TENSORS = "--format adapters writes what it learned as plain tensors"


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
    """One network with fixed weights: a backbone without branches, and a classifier.

    Args:
        backbone: the feature extractor.
        classifier: the classifier on its features.
    """

    def __init__(self, backbone: Backbone, classifier: PlainClassifier) -> None:
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


def fixed(method: Method, *, linear: bool = False) -> Fixed:
    """Convert a method into one network with fixed weights; predictions are the same up to rounding.

    Args:
        method: the method.
        linear: whether its classifier must be one linear layer.

    Raises:
        ValueError: the method is not one network with such a classifier.
    """
    acting = acting_branches(method)
    classifier = _classifier(method, linear)
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
    if any(a.branch.tokens == "class" for a in acting):
        noun = method.backbone.transform.noun
        raise ValueError(
            "adapters of this method act on class tokens alone, so they cannot become part of the weights, which all "
            f"tokens pass; {_OTHERWISE.get(noun, _TENSORS)}"
        )
    return acting


def _number(coefficient: Coefficient) -> float | None:
    if isinstance(coefficient, Tensor):
        return float(coefficient) if coefficient.numel() == 1 else None
    return None if callable(coefficient) else coefficient


def _per_sample(method: Method) -> ValueError:
    noun = method.backbone.transform.noun
    return ValueError(
        f"this method weighs its adapters anew for each {noun}, so they cannot become part of the weights; "
        f"{_OTHERWISE.get(noun, _TENSORS)}"
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


def _classifier(method: Method, linear: bool) -> PlainClassifier:
    """Return the method's classifier.

    Raises:
        ValueError: it has none of this form; the message says why, and names another export.
    """
    try:
        return PlainClassifier.of_linear(method.linear_classifier()) if linear else method.plain_classifier()
    except ValueError as error:
        further = "" if method.base is None else ", or with --readout base the heads below, which predict otherwise"
        otherwise = _OTHERWISE.get(method.backbone.transform.noun, _TENSORS)
        raise ValueError(f"{error}; {otherwise}{further}") from None
