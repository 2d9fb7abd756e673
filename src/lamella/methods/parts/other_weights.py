"""What parts have in common that predict with other weights than those that were trained."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.acting import acting_branches, added
from lamella.adapters.adapter import Adapted, Site, module_key
from lamella.adapters.few_bits import has_few_bits
from lamella.data.samples import Samples
from lamella.memory.resizable import Resizable
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.shared.heads import Head
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = ["OtherWeights", "TrainedWeights", "check_own_weights"]


def check_own_weights(base: Method) -> None:
    """Make sure that a method predicts with the weights that it has trained.

    Raises:
        ValueError: it is itself one with other weights.
    """
    if isinstance(base, OtherWeights):
        raise ValueError("merge and mean_weights both choose the weights to predict with; leave one of them out")


class TrainedWeights(Resizable):
    """What is not in the layers at the moment: the weights to train from, or those to predict with.

    It has of each layer the output rows from the first to the last that a site writes to.

    Args:
        sites: the sites of the layers.

    Raises:
        ValueError: a layer keeps its weight in 8 bits.
    """

    for_training = True
    still_in_training = True

    def __init__(self, sites: tuple[Site, ...]) -> None:
        super().__init__()
        self.layers: dict[str, Adapted] = {site.name: site.layer for site in sites}
        if has_few_bits(self.layers.values()):
            raise ValueError(
                "merge and mean_weights predict with changed weights, and this backbone keeps its weights in few bits, "
                "which stay as they are; leave the part out, or load the backbone with storage 'float32'"
            )
        rows = {name: [site.rows for site in sites if site.name == name] for name in self.layers}
        self.rows = {name: slice(min(r.start for r in own), max(r.stop for r in own)) for name, own in rows.items()}
        for name in self.layers:
            self.register_buffer(module_key(name), self.held(name).clone())

    def held(self, name: str) -> Tensor:
        """The rows of a layer's own weight, (rows, ...), which share its memory."""
        return self.layers[name].weight.detach()[self.rows[name]]

    def apart(self, name: str) -> Tensor:
        """The rows that are kept beside it, (rows, ...)."""
        return cast(Tensor, getattr(self, module_key(name)))

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange what is in the layers and what is beside them."""
        for name in self.layers:
            inside = self.held(name).clone()
            self.held(name).copy_(self.apart(name))
            self.apart(name).copy_(inside)


class OtherWeights(MethodOnBase):
    """A method on top of another one, which predicts as that one would with other weights in its adapted layers.

    Args:
        base: the method beneath.
        seed: the seed of every random draw.

    Attributes:
        trained: the base's own weights, while those to predict with are in the layers.
    """

    answers = True

    def __init__(self, base: Method, seed: int) -> None:
        super().__init__(base, seed)
        self.merges = True
        self.trained = TrainedWeights(tuple(self.sites))

    @torch.no_grad()
    def acting_weights(self) -> dict[str, Tensor]:
        """By layer, the rows of the weight that it acts as now, float64 on the CPU."""
        layers, example = self.trained.layers, self.backbone.example(1)
        branches = acting_branches(layers, lambda: self.base.features(example))
        weights = {name: layer.weight.cpu().double() for name, layer in layers.items()}
        return {
            name: (weight + added(weight, branches[name]))[self.trained.rows[name]] for name, weight in weights.items()
        }

    @torch.no_grad()
    def put(self, differences: Mapping[str, Tensor]) -> None:
        """Keep what is in the layers beside them, and add these differences to what is in the layers.

        Args:
            differences: by layer, (rows, ...) in float64.
        """
        for name, difference in differences.items():
            held = self.trained.held(name)
            self.trained.apart(name).copy_(held)
            held.copy_(held.cpu().double() + difference)

    @contextmanager
    def base_alone(self) -> Generator[Method]:
        """Within this context the base has the weights that were trained last, as it would alone."""
        self.trained.exchange()
        try:
            yield self.base
        finally:
            self.trained.exchange()

    # A prediction is the base's, with the weights that are in the layers.

    def predict(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        return self.base.predict(x, task)

    def classify(self, features: Tensor) -> Tensor:
        return self.base.classify(features)

    def features_and_logits(self, x: Samples) -> tuple[Tensor, Tensor]:
        return self.base.features_and_logits(x)

    def features_and_readouts(self, x: Samples) -> tuple[Tensor, Mapping[str, Tensor]]:
        """(n, d) features and all `readouts`, from one pass with the mean and one with the newest weights.

        The pass with the mean comes last, for what watches the layers.
        """
        with self.base_alone() as base:
            newest = base.readouts(x)
        features, logits = self.features_and_logits(x)
        return features, self.with_own(logits, newest)

    def typicality(self, features: Tensor, logits: Tensor) -> Tensor:
        return self.base.typicality(features, logits)

    @property
    def by_features(self) -> bool:
        return self.base.by_features

    def linear_classifier(self) -> nn.Linear:
        return self.base.linear_classifier()

    def plain_classifier(self) -> PlainClassifier:
        return self.base.plain_classifier()

    def head_of(self, task: int) -> Head:
        return self.base.head_of(task)
