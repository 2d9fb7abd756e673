"""Ways to classify the same features by class statistics."""

from collections.abc import Iterator
from typing import Any

import torch

from forms.case import Case, Form
from forms.network import images
from lamella.backbones import load_backbone
from lamella.common.randomness import generator
from lamella.memory.gaussians import ClassGaussians
from lamella.methods.nearest_mean import NearestMean
from lamella.methods.parts import Aligned

EACH = 12
"""Images of a class."""


def own_covariances(
    backbone: str = "vit_tiny_patch16_224",
    size: int = 128,
    classes: int = 100,
    directions: int = 8,
    batch: int = 32,
    device: str = "cpu",
) -> Iterator[Case]:
    """Predictions of alignment with covariances of the classes' own, whole or of a few directions.

    1.00 is the whole pass with a linear discriminant. "Bytes a class" are those kept beside its mean. Time does
    not depend on what is learned, so weights and features are random.
    """
    network = load_backbone(backbone, weights="random", size=size, crop=1.0).to(device)
    x = images(batch, size).to(device)
    options: dict[str, dict[str, Any]] = {
        "linear discriminant": {},
        f"own covariances, {directions} directions": {"own_covariance": 0.1, "own_directions": directions},
        "own covariances, whole": {"own_covariance": 0.1, "own_directions": "all"},
    }
    forms: dict[str, Form] = {}
    notes: dict[str, dict[str, str]] = {}
    features = torch.randn(EACH * classes, network.width, generator=generator(0, "features")).to(device)
    labels = torch.arange(classes).repeat(EACH)
    for name, own in options.items():
        method = Aligned(NearestMean(network), **own).eval()
        method.statistics.add(features, labels, range(classes))
        forms[name] = torch.no_grad()(lambda method=method: method.predict(x))
        notes[name] = {"bytes a class": f"{_own_bytes(method.statistics) / classes:,.0f}"}
    yield Case(
        f"{classes} classes, {network.width} features", forms, "linear discriminant", batch, device == "cpu",
        lambda seconds: notes,
    )  # fmt: skip


def _own_bytes(statistics: ClassGaussians) -> int:
    """Bytes of what each class has of its own, beside its mean and its count."""
    kept = statistics.low_rank
    tensors = [statistics.scatters, *([] if kept is None else kept.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
