"""What an adapter for PEFT is made of, whatever network it belongs to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lamella.learner.export.low_rank import Stored
from lamella.learner.model import Model
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = ["Adapter", "Write"]


@dataclass(frozen=True)
class Adapter:
    """An adapter, the network that it belongs to, and what both compute together.

    Attributes:
        loaded: the network of the backbone as it was loaded.
        pairs: the changes of its weights, by layer.
        classifier: the classifier on its features; None for a language model.
        described: the description of the export.
        own: samples -> logits, what the export is compared with.
        notes: further lines for the one who exports.
    """

    loaded: nn.Module
    pairs: Mapping[str, Stored]
    classifier: PlainClassifier | None
    described: dict[str, Any]
    own: Callable[[Any], Tensor]
    notes: tuple[str, ...] = ()

    @property
    def of_classes(self) -> PlainClassifier:
        """The classifier of a model of classes."""
        assert self.classifier is not None
        return self.classifier


Write = Callable[[Path, Model, Adapter], list[str]]
"""(a new folder, the model, the adapter) -> lines: the result of the check, ranks, notes, and how to load it."""
