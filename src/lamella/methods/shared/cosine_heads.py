"""Cosine heads: a class scores by the cosine between the features and its row, times a fixed scale.

With a margin that is taken from the right class in training they are CosFace (Wang et al., CVPR 2018, arXiv
1801.09414).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.methods.shared.heads import Head, Heads, cosine_scores
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = ["CosineHeads"]


class CosineHead(Head):
    """The cosine classifier of one task's classes, without a bias.

    Args:
        width: d, the number of features.
        classes: the global class ids of the rows.
        generator: draws the initial numbers; they are zero without it, for numbers that are loaded.
        start: the initial weights; see `Heads`.
        scale: the factor of the cosines.
    """

    def __init__(
        self, width: int, classes: Sequence[int], generator: torch.Generator | None, start: str, scale: float
    ) -> None:
        super().__init__(width, classes, generator, start)
        del self.bias
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * cosine_scores(features, self.weight)


class CosineHeads(Heads):
    """The cosine heads of all tasks. A class that comes back is scored by the head that learned it last.

    Args:
        width: d, the number of features.
        start: the initial weights of a head; not "zero".
        seed: the seed of random weights.
        scale: the factor of the cosines; above 0.

    Raises:
        ValueError: the start is "zero" or unknown, or the scale is not above 0.
    """

    def __init__(self, width: int, start: str, seed: int, scale: float) -> None:
        super().__init__(width, start, seed)
        if start == "zero":
            raise ValueError(
                "head_start 'zero' gives a cosine head no direction to start from; use 'uniform' or 'kaiming', or "
                "linear heads (head = 'linear')"
            )
        if not scale > 0:
            raise ValueError(f"the scale of cosine heads is {scale}; it must be above 0, and 20 is usual")
        self.scale = scale

    def as_plain(self) -> PlainClassifier:
        """Return the cosine classifier of all classes, in the order of `classes`."""
        row = {c: head.weight[k] for head in self for k, c in enumerate(head.classes)}  # the last head that has a class
        weight = torch.stack([row[c] for c in self.classes]).float()
        return PlainClassifier(self.scale * F.normalize(weight, dim=1), unit=True)

    def as_linear(self) -> nn.Linear:
        raise ValueError(
            "a model with cosine heads does not classify by one linear layer on the features of one network"
        )

    def _new(self, classes: Sequence[int], generator: torch.Generator | None = None) -> Head:
        return CosineHead(self.width, classes, generator, self.start, self.scale)
