"""Linear layers whose frozen weight is kept in 8 bits: whole numbers from -127 to 127, and a scale for each output row.

    w[i, j] is nearly scale[i] * level[i, j],   scale[i] = max_j |w[i, j]| / 127

A quarter of the memory of float32. Branches beside such a weight are in float32 as everywhere, and gradients pass
through to them and to the layers below: both passes compute the weight anew from its levels, so that what autograd
keeps is 8 bits too. The weight itself is never trained, and nothing is folded into it: steps of training are mostly far
smaller than a step between two levels, and would be rounded away.

Scales are rounded to 8 significant bits, so that 127 * scale is exact: quantising what was quantised changes no bit.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.layers import AdaptedLinear

__all__ = ["STORAGES", "Int8Linear", "has_int8", "levels_of", "to_float", "to_int8"]

STORAGES = ("float32", "int8")
LARGEST = 127


def levels_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight, row by row.

    Args:
        weight: (d_out, d_in).

    Returns:
        The levels (d_out, d_in) in int8, and the scales (d_out,) in float32; both are 0 for a row of zeros.
    """
    wide = weight.detach().float()
    scales = (wide.abs().amax(1) / LARGEST).bfloat16().float()
    levels = (wide / torch.where(scales > 0, scales, 1)[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return levels.to(torch.int8), scales


def _weight(levels: Tensor, scales: Tensor) -> Tensor:
    return levels.to(scales.dtype) * scales[:, None]


def _product(x: Tensor, levels: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, _weight(levels, scales), bias)


class _Frozen(torch.autograd.Function):
    """y = W x + bias for W of levels and scales, which keeps these for the backward pass and not W."""

    @staticmethod
    def forward(x: Tensor, levels: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, levels, scales, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, levels, scales, _ = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(levels, scales)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        levels, scales = ctx.saved_tensors
        to_x = (gradients[0] @ _weight(levels, scales).to(gradients[0].dtype)).to(ctx.dtype)
        return to_x, None, None, gradients[0].sum(0) if ctx.needs_input_grad[3] else None


class Int8Linear(AdaptedLinear):
    """A linear layer that can have branches, and whose own weight is kept in 8 bits.

    Args:
        layer: the layer whose weight is taken over; its bias is shared.

    Attributes:
        levels: (d_out, d_in) int8.
        scales: (d_out,) float32.
    """

    levels: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        levels, scales = levels_of(layer.weight)
        self.register_buffer("levels", levels)
        self.register_buffer("scales", scales)
        self.bias = layer.bias
        self.carry()
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(d_out, d_in) float32, made anew; what is written to it is lost."""
        return _weight(self.levels, self.scales)

    def _frozen(self, input: Tensor) -> Tensor:
        return self._rows(input, slice(None), self.bias)

    def _rows(self, x: Tensor, rows: slice, bias: Tensor | None) -> Tensor:
        levels, scales = self.levels[rows], self.scales[rows]
        if torch.is_grad_enabled() and x.requires_grad:
            # Rows, since a view that the function itself makes may not be changed in place, as branches do.
            return _Frozen.apply(x.flatten(0, -2), levels, scales, bias).unflatten(0, x.shape[:-1])
        return _product(x, levels, scales, bias)


def to_int8(model: nn.Module) -> None:
    """Replace all linear layers of a network in place by layers with 8 bits for each entry of their weights.

    Args:
        model: the network, whose linear layers have no branches yet.

    Raises:
        ValueError: it has no linear layers.
    """
    found = {layer: Int8Linear(layer) for layer in model.modules() if type(layer) is nn.Linear}
    if not found:
        raise ValueError(
            "this network has no linear layers whose weights could be kept in 8 bits; leave backbone.storage out"
        )
    _replace(model, found)


def to_float(model: nn.Module) -> None:
    """Replace all layers in 8 bits in place by plain layers with the same weights in float32, without branches."""
    found: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            with torch.device("meta"):
                plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            plain.weight, plain.bias = nn.Parameter(layer.weight, requires_grad=False), cast(Any, layer.bias)
            found[layer] = plain.train(layer.training)
    _replace(model, found)


def has_int8(layers: nn.Module | Iterable[nn.Module]) -> bool:
    """Whether there are layers in 8 bits in a network, or among layers."""
    every = layers.modules() if isinstance(layers, nn.Module) else layers
    return any(isinstance(layer, Int8Linear) for layer in every)


def _replace(model: nn.Module, found: Any) -> None:
    # A layer may have several names in the model; all of them must refer to the new layer.
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if layer in found:
            model.set_submodule(name, found[layer])
