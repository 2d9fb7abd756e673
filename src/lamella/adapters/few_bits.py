"""Linear layers whose frozen weight is kept in few bits: codes, and scales of rows or of blocks within rows.

    w[i, j] is nearly scale[i, block of j] * level(code[i, j])

Two storages:

    int8    whole numbers from -127 to 127 and a scale for each row, max_j |w[i, j]| / 127: a quarter of float32
    nf4     16 levels and a scale for each 64 entries of a row, their largest absolute value: 4.25 bits an entry, an
            eighth of float32. The levels are quantiles of a normal distribution, one of which is 0 (NormalFloat:
            Dettmers et al., "QLoRA", NeurIPS 2023, arXiv 2305.14314). A scale is kept in bfloat16, where the paper's
            authors keep float32 and can quantise the scales a second time.

Branches beside such a weight are in float32 as everywhere, and gradients pass through to them and to the layers below:
both passes compute the weight anew from its codes, so that what autograd keeps is few bits too. The weight itself is
never trained, and nothing is folded into it: steps of training are mostly far smaller than a step between two levels,
and would be rounded away.

Scales are rounded to 8 significant bits, so that a level times its scale is exact in int8, and near enough in nf4:
quantising what was quantised changes no bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.layers import AdaptedLinear

__all__ = ["STORAGES", "FewBitsLinear", "Int8Linear", "NF4Linear", "has_few_bits", "store_in", "to_float"]

LARGEST = 127
BLOCK = 64
"""The entries of a row of nf4 that share a scale."""


class FewBitsLinear(AdaptedLinear, ABC):
    """A linear layer that can have branches, and whose own weight is kept in few bits.

    Args:
        layer: the layer whose weight is taken over; its bias is shared.

    Attributes:
        codes: (d_out, bytes of a row), integers of 8 bits.
        scales: (d_out, blocks of a row), float32 or bfloat16.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear, which would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, scales = self.encode(layer.weight.detach().float())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = layer.bias
        self.carry()
        self.train(layer.training)

    @staticmethod
    @abstractmethod
    def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise a weight (d_out, d_in) in float32, row by row; scales are 0 where all entries are."""

    @staticmethod
    @abstractmethod
    def decode(codes: Tensor, scales: Tensor, d_in: int) -> Tensor:
        """Return the weight of the given rows, (rows, d_in) float32."""

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(d_out, d_in) float32, made anew; what is written to it is lost."""
        return self.decode(self.codes, self.scales, self.in_features)

    def _frozen(self, input: Tensor) -> Tensor:
        return self._rows(input, slice(None), self.bias)

    def _rows(self, x: Tensor, rows: slice, bias: Tensor | None) -> Tensor:
        codes, scales = self.codes[rows], self.scales[rows]
        if torch.is_grad_enabled() and x.requires_grad:
            # Rows, since a view that the function itself makes may not be changed in place, as branches do.
            return _Frozen.apply(x.flatten(0, -2), codes, scales, bias, type(self)).unflatten(0, x.shape[:-1])
        return F.linear(x, self.decode(codes, scales, self.in_features), bias)


class Int8Linear(FewBitsLinear):
    """Whole numbers of 8 bits (d_out, d_in), and a scale for each row (d_out, 1) in float32."""

    @staticmethod
    def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
        scales = (weight.abs().amax(1, keepdim=True) / LARGEST).bfloat16().float()
        levels = (weight / torch.where(scales > 0, scales, 1)).round_().clamp_(-LARGEST, LARGEST)
        return levels.to(torch.int8), scales

    @staticmethod
    def decode(codes: Tensor, scales: Tensor, d_in: int) -> Tensor:
        return codes.to(scales.dtype) * scales


class NF4Linear(FewBitsLinear):
    """Two codes a byte (d_out, d_in / 2), the first in the high half, and a scale in bfloat16 for each 64 entries.

    A row whose length is no multiple of 64 is filled up with zeros.
    """

    @staticmethod
    def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
        blocks = F.pad(weight, (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
        scales = blocks.abs().amax(2).bfloat16()
        wide = scales.float()[:, :, None]
        levels = normal_float(weight.device)
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(blocks / torch.where(wide > 0, wide, 1), between).flatten(1).to(torch.uint8)
        return codes[:, ::2] << 4 | codes[:, 1::2], scales

    @staticmethod
    def decode(codes: Tensor, scales: Tensor, d_in: int) -> Tensor:
        entries = F.embedding(codes.int(), _pairs(codes.device)).unflatten(1, (-1, BLOCK // 2)).flatten(2)
        return (entries * scales.float()[:, :, None]).flatten(1)[:, :d_in]


STORAGES: dict[str, type[FewBitsLinear] | None] = {"float32": None, "int8": Int8Linear, "nf4": NF4Linear}
"""By the name of a storage, the class of layers that keeps weights so; None for plain layers."""


def normal_float(device: torch.device | None = None) -> Tensor:
    """Return the 16 levels of a NormalFloat of 4 bits from -1 to 1, (16,) float32 in rising order.

    They are quantiles of a normal distribution at even steps of probability, 8 above zero and 7 below it, and 0,
    divided by the largest (QLoRA, appendix E).
    """
    outermost = (1 - 1 / 32 + 1 - 1 / 30) / 2  # the mean of the tails that 16 and 15 even steps would leave
    above, below = (torch.linspace(outermost, 0.5, n, dtype=torch.float64)[:-1] for n in (9, 8))
    levels = torch.cat([torch.special.ndtri(above), torch.zeros(1, dtype=torch.float64), -torch.special.ndtri(below)])
    return (levels / levels.max()).sort().values.float().to(device)


@cache
def _pairs(device: torch.device) -> Tensor:
    """By byte the levels of its high and its low half, (256, 2)."""
    levels = normal_float(device)
    return torch.cartesian_prod(levels, levels)


class _Frozen(torch.autograd.Function):
    """y = W x + bias for W of codes and scales, which keeps these for the backward pass and not W."""

    @staticmethod
    def forward(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, kind: type[FewBitsLinear]) -> Tensor:
        return F.linear(x, kind.decode(codes, scales, x.shape[-1]), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, codes, scales, _, ctx.kind = inputs
        ctx.dtype, ctx.d_in = x.dtype, x.shape[-1]
        ctx.save_for_backward(codes, scales)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        weight = ctx.kind.decode(codes, scales, ctx.d_in).to(gradients[0].dtype)
        to_bias = gradients[0].sum(0) if ctx.needs_input_grad[3] else None
        return (gradients[0] @ weight).to(ctx.dtype), None, None, to_bias, None


def store_in(storage: str, model: nn.Module) -> None:
    """Replace all linear layers of a network in place by layers that keep their weights so.

    A layer that shares its weight with another one, as the last layer of many language models does with their
    embedding, stays as it is: in few bits the weight would be there twice.

    Args:
        storage: a name of `STORAGES`; "float32" replaces nothing.
        model: the network, whose linear layers have no branches yet.

    Raises:
        ValueError: the network has no linear layers.
    """
    kind = STORAGES[storage]
    if kind is None:
        return
    owners: dict[Any, int] = {}
    for layer in model.modules():
        for parameter in layer.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    own = [layer for layer in model.modules() if type(layer) is nn.Linear and owners[layer.weight] == 1]
    if not own:
        raise ValueError(
            "this network has no linear layers whose weights could be kept in few bits; leave backbone.storage out"
        )
    _replace(model, {layer: kind(layer) for layer in own})


def to_float(model: nn.Module) -> None:
    """Replace all layers in few bits in place by plain layers with the same weights in float32, without branches."""
    found: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, FewBitsLinear):
            with torch.device("meta"):
                plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            plain.weight, plain.bias = nn.Parameter(layer.weight, requires_grad=False), cast(Any, layer.bias)
            found[layer] = plain.train(layer.training)
    _replace(model, found)


def has_few_bits(layers: nn.Module | Iterable[nn.Module]) -> bool:
    """Whether there are layers in few bits in a network, or among layers."""
    every = layers.modules() if isinstance(layers, nn.Module) else layers
    return any(isinstance(layer, FewBitsLinear) for layer in every)


def _replace(model: nn.Module, found: Any) -> None:
    # A layer may have several names in the model; all of them must refer to the new layer.
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if layer in found:
            model.set_submodule(name, found[layer])
