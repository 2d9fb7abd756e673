"""The weight of each plugin for an image, and the aggregation of their features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.common.checks import check_one_of
from lamella.memory.resizable import Resizable

__all__ = ["GATES", "WeightingUnit", "aggregated"]

GATES = ("sigmoid", "softmax", "fixed")


def aggregated(features: Tensor, gates: Tensor) -> Tensor:
    """Return z = [f_0; g_1 f_1; ...], (n, (1 + t) D).

    Args:
        features: (n, 1 + t, D), the features f_0, f_1 ... f_t of the base and of t plugins.
        gates: (n, t), the gates g of the plugins.
    """
    return torch.cat([features[:, :1], gates[:, :, None] * features[:, 1:]], 1).flatten(1)


class WeightingUnit(Resizable):
    """Computes the gates, the weight of each plugin for an image, from one row and one bias for each plugin.

    Args:
        width: D, the number of the base's features.
        kind: "sigmoid" (each plugin for itself), "softmax" (the gates sum to 1) or "fixed" (all gates are 1, and
            nothing is learned).

    Attributes:
        weight: V (t, D), zero at the start.
        bias: b (t,), 2 at the start, so that a sigmoid starts at 0.88.

    Raises:
        ValueError: the kind is unknown.
    """

    resizable = ("weight", "bias")

    def __init__(self, width: int, kind: str = "sigmoid") -> None:
        super().__init__()
        check_one_of("gate", kind, GATES)
        self.kind = kind
        self.weight = nn.Parameter(torch.zeros(0, width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(0), requires_grad=False)

    def grow(self) -> None:
        """Add a row for one more plugin; old rows stay as they are."""
        if self.kind != "fixed":
            weight = torch.cat([self.weight, self.weight.new_zeros(1, self.weight.shape[1])])
            self._set(weight, torch.cat([self.bias, self.bias.new_full((1,), 2.0)]))

    def prepare(self, *_: object) -> None:
        """The unit learns together with the plugins, so nothing is computed before; compare `RoutedUnit.prepare`."""

    def _set(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the (n, t) gates for features (n, 1 + t, D)."""
        if self.kind == "fixed":
            return features.new_ones(features.shape[0], features.shape[1] - 1)
        scores = F.linear(features[:, 0], self.weight, self.bias)
        return scores.sigmoid() if self.kind == "sigmoid" else scores.softmax(1)
