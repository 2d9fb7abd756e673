"""Turns a network of transformers into an equal one whose layers branches can attach to."""

from typing import Any

import torch
from torch import nn

__all__ = ["is_transposed", "make_linear", "part_positions"]


@torch.no_grad()
def make_linear(network: nn.Module) -> tuple[str, ...]:
    """Put a linear layer in the place of each `Conv1D` of transformers, whose weight is stored the other way round.

    Args:
        network: changed in place; it computes the same.

    Returns:
        The names of these layers: transposing their weights gives what transformers loads.
    """
    found: dict[str, Any] = {name: module for name, module in network.named_modules() if is_transposed(module)}
    for name, layer in found.items():
        (d_in, d_out), weight = layer.weight.shape, layer.weight
        with torch.device("meta"):
            linear = nn.Linear(d_in, d_out)
        linear.weight = nn.Parameter(weight.T.contiguous(), requires_grad=weight.requires_grad)
        linear.bias = layer.bias
        network.set_submodule(name, linear.train(layer.training))
    return tuple(found)


def part_positions(network: nn.Module) -> bool:
    """Give the relative positions of a DeBERTa projections of their own, where it shares those of tokens with them.

    The shared layers are called on the vectors of tokens and once more on those of positions, which are no tokens of
    any text. A branch there would change how positions are read, too, and who looks at the layer's inputs would take
    positions for tokens. With equal layers of their own, positions are read as before whatever is learned.

    Args:
        network: changed in place; it computes the same, and its `config.share_att_key` says that nothing is shared.

    Returns:
        Whether it was such a network.
    """
    sharing: list[Any] = [m for m in network.modules() if getattr(m, "share_att_key", False) and _projects(m)]
    for attention in sharing:
        for kind, own, shared in (("c2p", "pos_key_proj", "key_proj"), ("p2c", "pos_query_proj", "query_proj")):
            if kind in attention.pos_att_type:
                setattr(attention, own, _copy(getattr(attention, shared)))
        attention.share_att_key = False
    if sharing:
        config: Any = network.config
        config.share_att_key = False
    return bool(sharing)


def is_transposed(module: nn.Module) -> bool:
    """Whether a layer is a `Conv1D` of transformers: a linear one whose weight is (inputs, outputs)."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def _projects(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in ("query_proj", "key_proj"))


def _copy(layer: nn.Linear) -> nn.Linear:
    with torch.device("meta"):
        copied = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    weight, bias = layer.weight, layer.bias
    copied.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if layer.bias is not None:
        copied.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return copied.train(layer.training)
