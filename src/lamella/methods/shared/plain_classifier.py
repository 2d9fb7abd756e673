"""Classifiers in a form that other programs can rebuild from a few tensors."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.memory.low_rank import Curves
from lamella.methods.shared.heads import linear_layer

__all__ = ["PlainClassifier"]


class PlainClassifier(nn.Module):
    """A linear classifier of features; they may be brought to length 1 and projected first, and squares may be added.

    It computes in the precision of its weights.

    Args:
        weight: (classes, d), or (classes, M) where there is a projection.
        bias: (classes,); zeros where it is left out.
        projection: (M, d). Features f become relu(projection f); None leaves them as they are.
        unit: whether features are brought to length 1 before anything else.
        curves: what a quadratic discriminant adds to the scores; it has no projection. None adds nothing.
    """

    weight: Tensor
    bias: Tensor
    projection: Tensor | None
    curves: Curves | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        projection: Tensor | None = None,
        unit: bool = False,
        curves: Curves | None = None,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.curves = curves
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        for name, tensor in (("weight", weight), ("bias", bias), ("projection", projection)):
            self.register_buffer(
                name, None if tensor is None else tensor.detach().clone(memory_format=torch.contiguous_format)
            )

    @classmethod
    def of_linear(cls, layer: nn.Linear) -> Self:
        """The same as a linear layer."""
        return cls(layer.weight, layer.bias)

    @classmethod
    def of_means(cls, means: Tensor) -> Self:
        """Cosines with class means (classes, d)."""
        return cls(F.normalize(means, dim=1), unit=True)

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, classes) logits, at least in float32."""
        f = features.to(self.weight.dtype)
        if self.unit:
            f = F.normalize(f, dim=1)
        if self.projection is not None:
            f = F.relu(f @ self.projection.T)
        scores = F.linear(f, self.weight, self.bias)
        if self.curves is not None:
            scores = scores + self.curves(f)
        return scores.to(torch.promote_types(features.dtype, torch.float32))

    def as_linear(self) -> nn.Linear:
        """The same as one linear layer in float32.

        Raises:
            ValueError: it does more than that.
        """
        if self.unit or self.projection is not None or self.curves is not None:
            raise ValueError("this classifier is more than one linear layer")
        return linear_layer(self.weight, self.bias)
