"""Sites: the layers of any model that can have low-rank branches, and how layers are prepared for them."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from lamella.adapters.branches import Adapted
from lamella.adapters.layers import AdaptedConv2d, AdaptedLinear

__all__ = ["Site", "adapt", "module_key"]


class Site(NamedTuple):
    """A layer that can have branches.

    Attributes:
        name: the name of the layer in the model.
        layer: the layer.
        rows: the slice of its output rows that the branches of this site change.
    """

    name: str
    layer: Adapted
    rows: slice


def module_key(name: str) -> str:
    """Convert the name of a layer to a key of a `ModuleDict`, which may not contain dots."""
    return name.replace(".", "/")


def _refine(name: str, layer: nn.Module, convolution: type[AdaptedConv2d]) -> Adapted:
    """Convert a layer to the class that can have branches, with the same Parameter objects."""
    if isinstance(layer, Adapted):
        if isinstance(layer, AdaptedConv2d) and not isinstance(layer, convolution):
            raise TypeError(
                f"layer '{name}' is of the class {type(layer).__name__} already, and sites refer to it, so it cannot "
                f"become {convolution.__name__}; load the backbone again"
            )
        return layer
    with torch.device("meta"):
        if type(layer) is nn.Linear:
            refined: Adapted = AdaptedLinear(layer.in_features, layer.out_features, layer.bias is not None)
        elif type(layer) is nn.Conv2d and layer.groups == 1:
            refined = convolution(
                layer.in_channels,
                layer.out_channels,
                cast(Any, layer.kernel_size),
                cast(Any, layer.stride),
                cast(Any, layer.padding),
                cast(Any, layer.dilation),
                1,
                layer.bias is not None,
                layer.padding_mode,
            )
        else:
            kind = "a grouped convolution" if type(layer) is nn.Conv2d else type(layer).__name__
            raise TypeError(
                f"layer '{name}' is {kind}; branches attach to exactly nn.Linear and ungrouped nn.Conv2d, because "
                "other types may read their weight themselves and would silently skip the branch"
            )
    refined.weight, refined.bias = layer.weight, cast(Any, layer.bias)
    refined.carry()
    return refined.train(layer.training)


def adapt(
    model: nn.Module,
    patterns: str | Sequence[str],
    rows: slice = slice(None),
    *,
    convolution: type[AdaptedConv2d] = AdaptedConv2d,
) -> tuple[Site, ...]:
    """Prepare the layers whose names match for branches. Outputs and state-dict keys do not change.

    Args:
        model: any module. Matching layers are replaced in place by layers that share their Parameters.
        patterns: layer names, which may contain `*` and `?`, such as `"blocks.*.attn.qkv"`.
        rows: the output rows that branches of these sites change; by default all.
        convolution: the class that convolutions are converted to.

    Returns:
        One site per matching layer, in the model's order.

    Raises:
        ValueError: a pattern matches no layer, or `rows` lies outside a layer's output.
        TypeError: a matching layer is not exactly `nn.Linear` or an ungrouped `nn.Conv2d`, or it is a convolution that
            was converted to another class before.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    adapted = [module for module in model.modules() if isinstance(module, Adapted)]
    of_branches = {part for layer in adapted for part in layer.branches.modules()}
    every = {n: m for n, m in model.named_modules() if n and m not in of_branches}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            layers = [n for n, m in every.items() if isinstance(m, nn.Linear | nn.Conv2d)]
            near = get_close_matches(pattern, layers, 3, 0.3) or layers[:3]
            raise ValueError(f"no layer matches '{pattern}'; names look like " + ", ".join(f"'{n}'" for n in near))
    matching = [name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)]
    refined = {name: _refine(name, every[name], convolution) for name in matching}
    sites = tuple(Site(name, layer, _checked_rows(name, layer, rows)) for name, layer in refined.items())
    # A layer may have several names in the model; all of them must refer to the new layer.
    replacing = {every[name]: layer for name, layer in refined.items() if layer is not every[name]}
    for alias, layer in list(model.named_modules(remove_duplicate=False)):
        if layer in replacing:
            model.set_submodule(alias, replacing[layer])
    return sites


def _checked_rows(name: str, layer: Adapted, rows: slice) -> slice:
    d_out = layer.weight.shape[0]
    start, stop, step = rows.indices(d_out)
    if step != 1 or start >= stop or (rows.stop or 0) > d_out:
        raise ValueError(f"rows {rows} of layer '{name}' must be a range with step 1 within its {d_out} output rows")
    return slice(start, stop)
