"""A learned method taken apart: one network with fixed weights, and one linear classifier on its features.

Nothing here knows a method by name. Which branches act, and with what coefficients, is seen in one of the method's own
predictions; where they differ from image to image, or the images pass through more than once, there is no such network.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, watch
from lamella.adapters.branches import Adapted, Branch, Coefficient
from lamella.backbones import Backbone
from lamella.learner.export.check import random_images
from lamella.memory.gaussians import ClassGaussians
from lamella.methods.parts.align import Aligned
from lamella.methods.shared.heads import Head, Heads
from lamella.methods.streaming_lda import StreamingLDA

__all__ = ["Acting", "Fixed", "acting_branches", "adapted_layers", "beneath", "fixed", "linear_layer", "update"]


class Acting(NamedTuple):
    """A branch of an adapter and the number that it is multiplied by in every prediction."""

    adapter: str
    branch: Branch
    coefficient: float


class Fixed(nn.Module):
    """A method as one network: a backbone without branches, and a linear classifier."""

    def __init__(self, backbone: Backbone, classifier: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, size, size) -> (n, classes)."""
        return self.classifier(self.backbone(x))


def beneath(method: Any, readout: str) -> Any:
    """The method whose prediction a readout is: itself for "", what it is built on for "base".

    Raises:
        ValueError: there is no such readout.
    """
    there = [""]
    while readout != there[-1]:
        method = getattr(method, "base", None)
        if method is None:
            raise ValueError(f"this model has no readout '{readout}'; there are {', '.join(map(repr, there))}")
        there.append(f"{there[-1]}.base".lstrip("."))
    return method


def fixed(method: Any) -> Fixed:
    """The method as one network with fixed weights; its predictions are the same up to rounding.

    Raises:
        ValueError: it is none, and why.
    """
    acting = acting_branches(method)
    classifier = _linear_classifier(method)
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
def acting_branches(method: Any) -> dict[str, list[Acting]]:
    """For each layer that can carry branches, those that act in every prediction.

    Raises:
        ValueError: which act, or how much, depends on the image.
    """
    layers = adapted_layers(method.backbone.model)
    passes: dict[Adapted, list[Any]] = {layer: [] for layer in layers.values()}
    sites = [Site(name, layer, slice(0, layer.weight.shape[0])) for name, layer in layers.items()]
    with watch(sites, lambda layer: lambda x: passes[layer].append(layer.acting)):
        method.predict(random_images(2, method.backbone.transform.size))
    if any(len(seen) > 1 for seen in passes.values()):
        raise _per_image(method)
    chosen = {name: passes[layer][0] if passes[layer] else {} for name, layer in layers.items()}
    return {name: _acting(method, layer, chosen[name]) for name, layer in layers.items()}


def _acting(method: Any, layer: Adapted, chosen: Mapping[str, Coefficient] | None) -> list[Acting]:
    coefficients = dict.fromkeys(layer.branches, 1.0) if chosen is None else chosen
    found = [(name, branch, c) for name, c in coefficients.items() for branch in layer.of(name)]
    numbers = [(name, branch, _number(c)) for name, branch, c in found if branch.gate is None]
    acting = [Acting(name, branch, number) for name, branch, number in numbers if number is not None]
    if len(acting) < len(found):
        raise _per_image(method)
    return acting


def _number(coefficient: Coefficient) -> float | None:
    if isinstance(coefficient, Tensor):
        return float(coefficient) if coefficient.numel() == 1 else None
    return None if callable(coefficient) else coefficient


def _per_image(method: Any) -> ValueError:
    return ValueError(
        f"{type(method).__name__} weighs its adapters anew for each image, so they cannot become part of the weights; "
        "export the graph with --format onnx"
    )


def update(shape: Sequence[int], acting: Sequence[Acting]) -> Tensor:
    """What branches add to a weight of this shape, in float64."""
    total = torch.zeros(*shape, dtype=torch.float64)
    for _, branch, coefficient in acting:
        total[branch.rows] += coefficient * deepcopy(branch).cpu().double().delta(shape)
    return total


def _linear_classifier(method: Any) -> nn.Linear:
    """Its classifier as one linear layer on the backbone's features, rows in the order of its classes.

    Raises:
        ValueError: it is none, and what to do.
    """
    if isinstance(method, Aligned) and method.quadratic:
        raise ValueError(
            "classes have covariances of their own (own_covariance), which no linear layer holds; export the method's "
            "own heads with --readout base, or all of it with --format onnx"
        )
    if isinstance(method, StreamingLDA) or (isinstance(method, Aligned) and method.head == "lda"):
        return _of_discriminant(method.statistics, method.shrinkage)
    heads = method.refitted if isinstance(method, Aligned) else getattr(method, "heads", None)
    if not isinstance(heads, Heads) or heads.width != method.backbone.width or not _classifies_with(method, heads):
        further = " (--readout base is what it is built on)" if hasattr(method, "base") else ""
        raise ValueError(
            f"{type(method).__name__} does not classify by one linear layer on the features of one network{further}; "
            "export the graph with --format onnx"
        )
    return _of_heads(heads)


@torch.no_grad()
def _classifies_with(method: Any, heads: Heads) -> bool:
    if not hasattr(method, "features"):
        return False
    x = random_images(2, method.backbone.transform.size)
    own = method.predict(x)
    return bool(torch.allclose(heads(method.features(x)), own, rtol=1e-4, atol=1e-4 * float(own.abs().max())))


def _of_heads(heads: Heads) -> nn.Linear:
    every = [head for head in heads.heads if isinstance(head, Head)]
    weights = {i: row for head in every for i, row in zip(head.classes, head.weight, strict=True)}
    biases = {i: bias for head in every for i, bias in zip(head.classes, head.bias, strict=True)}
    return linear_layer(
        torch.stack([weights[i] for i in heads.classes]), torch.stack([biases[i] for i in heads.classes])
    )


def _of_discriminant(statistics: ClassGaussians, shrinkage: float) -> nn.Linear:
    """Scores are affine in the features: their values at zero and at the unit vectors say all of them, in float64."""
    width = statistics.means.shape[1]
    points = torch.cat([statistics.means.new_zeros(1, width), torch.eye(width).to(statistics.means)])
    scores = statistics.linear_discriminant(points, shrinkage)
    return linear_layer((scores[1:] - scores[0]).T, scores[0])


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The linear layer with this weight (classes, d) and bias (classes,), in float32."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    return layer
