"""How much each plugin has to say about an image, and what comes of all of them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.common.checks import check_one_of
from lamella.memory.resizable import Growing

__all__ = ["GATES", "WeightingUnit", "aggregated"]

GATES = ("sigmoid", "softmax", "fixed")


def aggregated(features: Tensor, gates: Tensor) -> Tensor:
    """z = [f_0; g_1 f_1; ...] (n, (1 + t) D) of features f_0, f_1 ... f_t (n, 1 + t, D) and gates g (n, t)."""
    return torch.cat([features[:, :1], gates[:, :, None] * features[:, 1:]], 1).flatten(1)


class WeightingUnit(Growing):
    """How much each plugin has to say about an image: one row and one bias a plugin.

    Args:
        width: D.
        kind: "sigmoid" (each for itself), "softmax" (they share one), "fixed" (all 1, nothing is learned).

    Attributes:
        weight: V (t, D), zero at the start.
        bias: b (t,), 2 at the start, so that a sigmoid begins at 0.88.

    Raises:
        ValueError: an unknown kind.
    """

    growing = ("weight", "bias")

    def __init__(self, width: int, kind: str = "sigmoid") -> None:
        super().__init__()
        check_one_of("gate", kind, GATES)
        self.kind = kind
        self.weight = nn.Parameter(torch.zeros(0, width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(0), requires_grad=False)

    def grow(self) -> None:
        """A row for one more plugin; old rows stay as they are."""
        if self.kind != "fixed":
            weight = torch.cat([self.weight, self.weight.new_zeros(1, self.weight.shape[1])])
            self._set(weight, torch.cat([self.bias, self.bias.new_full((1,), 2.0)]))

    def _set(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """(n, t) gates from features (n, 1 + t, D)."""
        if self.kind == "fixed":
            return features.new_ones(features.shape[0], features.shape[1] - 1)
        scores = F.linear(features[:, 0], self.weight, self.bias)
        return scores.sigmoid() if self.kind == "sigmoid" else scores.softmax(1)
