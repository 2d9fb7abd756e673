"""Low-rank branches on the layers of a model we did not write: adapt, grow, using, watch, merge.

A branch is a pair (A, B) on some output rows of one layer: `dW[rows] = scale * B @ A`. A reduces, B expands (Hu et
al., "LoRA", ICLR 2022, arXiv 2106.09685; PEFT's letters). `adapted.py` has the layers that carry them.

Guards against the three ways a branch can go wrong:

1. *Silent bypass*: a model that reads `layer.weight` itself never calls the layer. `adapt` takes exact torch types
   only (a subclass may do anything with its weight), and `fit` raises when a trained tensor receives no gradient.
2. *Batch norm*: statistics move in train mode although every parameter is frozen. Methods put frozen phases in eval
   mode.
3. *Rounding*: `merge` folds in float32 and refuses weights that are not dense floats.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from lamella.adapted import AdaptedConv2d, AdaptedLinear
from lamella.branches import Adapted, Branch, Coefficient

__all__ = [
    "Adapted",
    "AdaptedConv2d",
    "AdaptedLinear",
    "Branch",
    "Coefficient",
    "Site",
    "adapt",
    "adapter_state",
    "grow",
    "merge",
    "module_key",
    "using",
    "watch",
]

T = TypeVar("T", bound=Callable[[Tensor], Any])
_MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Site(NamedTuple):
    """A layer that can carry branches, and the slice of its output rows that they write to."""

    name: str
    layer: Adapted
    rows: slice


def module_key(name: str) -> str:
    """The name of a layer as a key of a `ModuleDict`, which has no dots."""
    return name.replace(".", "/")


def _refine(name: str, layer: nn.Module, convolution: type[AdaptedConv2d]) -> Adapted:
    """The same layer in a class that can carry branches, holding the same Parameter objects."""
    if isinstance(layer, Adapted):
        if isinstance(layer, AdaptedConv2d) and not isinstance(layer, convolution):
            raise TypeError(
                f"layer '{name}' is of the class {type(layer).__name__} already, and others hold its sites, so it "
                f"cannot become {convolution.__name__}; load the backbone anew"
            )
        return layer
    with torch.device("meta"):
        if type(layer) is nn.Linear:
            refined: Adapted = AdaptedLinear(layer.in_features, layer.out_features, layer.bias is not None)
        elif type(layer) is nn.Conv2d and layer.groups == 1:
            refined = convolution(
                layer.in_channels, layer.out_channels, cast(Any, layer.kernel_size), cast(Any, layer.stride),
                cast(Any, layer.padding), cast(Any, layer.dilation), 1, layer.bias is not None, layer.padding_mode,
            )  # fmt: skip
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
    """Make the layers whose names match able to carry branches; outputs and state-dict keys stay as they are.

    Args:
        model: any module; matching layers are replaced in place by refined ones that share their Parameters.
        patterns: layer names, `*` and `?` allowed: `"blocks.*.attn.qkv"`.
        rows: the output rows that branches of these sites will write to, all by default.
        convolution: what convolutions become.

    Returns:
        One site per matching layer, in the model's order.

    Raises:
        ValueError: a pattern matches no layer, or `rows` lies outside a layer's output.
        TypeError: a matching layer is not exactly `nn.Linear` or an ungrouped `nn.Conv2d`, or it is a convolution that
            became another class before.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    every = {n: m for n, m in model.named_modules() if n and ".branches" not in n}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            layers = [n for n, m in every.items() if isinstance(m, nn.Linear | nn.Conv2d)]
            near = get_close_matches(pattern, layers, 3, 0.3) or layers[:3]
            raise ValueError(f"no layer matches '{pattern}'; names look like " + ", ".join(f"'{n}'" for n in near))
    matching = [name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)]
    refined = {name: _refine(name, every[name], convolution) for name in matching}
    sites = tuple(Site(name, layer, _checked_rows(name, layer, rows)) for name, layer in refined.items())
    # A layer may hang in the model under several names; all of them must lead to the refined one.
    replacing = {every[name]: layer for name, layer in refined.items() if layer is not every[name]}
    for alias, layer in list(model.named_modules(remove_duplicate=False)):
        if layer in replacing:
            model.set_submodule(alias, replacing[layer])
    return sites


def _checked_rows(name: str, layer: Adapted, rows: slice) -> slice:
    d_out = layer.weight.shape[0]
    start, stop, step = rows.indices(d_out)
    if step != 1 or start >= stop or (rows.stop or 0) > d_out:
        raise ValueError(f"rows {rows} of layer '{name}' must be a plain range within its {d_out} output rows")
    return slice(start, stop)


def grow(
    sites: Sequence[Site],
    name: str,
    rank: int | Sequence[int],
    *,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
    factorisation: str = "conv",
) -> list[Branch]:
    """Add an adapter: one branch of this name on every site, whose B is zero, so that nothing changes yet.

    Args:
        sites: where; several sites of one layer give it several branches.
        name: the adapter's name, without dots.
        rank: of every branch, or one for each site; at least 1.
        scale: constant factor of the update.
        generator: draws A as LoRA does (Kaiming uniform with a = sqrt 5: U(-1, 1) / sqrt(fan in)); zeros without it,
            for methods that design A themselves.
        factorisation: of convolutions, "conv" or "kernel".

    Returns:
        The new branches, in the order of `sites`.

    Raises:
        ValueError: the name is taken or cannot be one, a rank is below 1, or there is not one for each site.
    """
    ranks = [rank] * len(sites) if isinstance(rank, int) else list(rank)
    if "." in name or not name or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"adapter name {name!r} must be non-empty, without dots, and no word of torch's modules")
    if len(ranks) != len(sites):
        raise ValueError(f"{len(ranks)} ranks were given for {len(sites)} sites; give one number, or one for each site")
    if any(name in site.layer.branches for site in sites):
        raise ValueError(f"there is an adapter '{name}' already; merge it or choose another name")
    if min(ranks, default=1) < 1:
        raise ValueError(f"rank {min(ranks)} is too small; a branch needs a rank of at least 1")
    grown: list[Branch] = []
    for site, r in zip(sites, ranks, strict=True):
        A, B = site.layer.new_factors(r, site.rows, factorisation)
        if generator is not None:
            bound = A[0].numel() ** -0.5
            A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
        branch = Branch(A, B, site.rows, scale).to(A.device)
        if name not in site.layer.branches:
            site.layer.branches[name] = nn.ModuleList()
        cast(nn.ModuleList, site.layer.branches[name]).append(branch)
        grown.append(branch)
    return grown


def _layers(sites: Iterable[Site]) -> dict[str, Adapted]:
    return {site.name: site.layer for site in sites}


@contextmanager
def using(sites: Sequence[Site], names: str | Sequence[str] | Mapping[str, Coefficient] = ()) -> Generator[None]:
    """Within this context only the named adapters act (none given: the plain model).

    Args:
        sites: whose layers are set.
        names: adapter names, or a mapping from names to coefficients: a number, a tensor `(n,)` with one value a
            sample, or a callable of the layer's input that returns one.

    Raises:
        ValueError: no site carries an adapter of that name.
    """
    names = [names] if isinstance(names, str) else names
    chosen: Mapping[str, Coefficient] = names if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
    layers = _layers(sites)
    known = {name for layer in layers.values() for name in layer.branches}
    for name in chosen:
        if name not in known:
            raise ValueError(f"no adapter '{name}'; there are: {', '.join(sorted(known)) or 'none'}")
    before = {name: layer.acting for name, layer in layers.items()}
    for layer in layers.values():
        layer.acting = chosen
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.acting = before[name]


@contextmanager
def watch(sites: Sequence[Site], make: Callable[[Adapted], T]) -> Generator[dict[str, T]]:
    """Within this context every layer of `sites` shows its input to its own observer.

    Args:
        sites: several sites of one layer share one observer, since they share the input.
        make: builds an observer for a layer; it is called with each input `(n, ..., d_in)`.

    Yields:
        Observers by layer name, filled as forward passes happen.
    """
    layers = _layers(sites)
    observers = {name: make(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.watchers.append(observers[name])
    try:
        yield observers
    finally:
        for name, layer in layers.items():
            layer.watchers.remove(observers[name])


def adapter_state(sites: Sequence[Site], name: str) -> dict[str, Tensor]:
    """The tensors of adapter `name` under their state-dict keys: what is written to disk before a merge."""
    return {
        f"{site}.branches.{name}.{key}": value.detach().clone()
        for site, layer in _layers(sites).items()
        if name in layer.branches
        for key, value in layer.branches[name].state_dict().items()
    }


@torch.no_grad()
def merge(sites: Sequence[Site], name: str) -> None:
    """Fold adapter `name` into the weights, in float32 at least, and remove its branches.

    Raises:
        ValueError: no such adapter, or a branch has a gate (its update differs from sample to sample).
        TypeError: a weight is not a dense floating-point tensor (a quantised model keeps its branches).
    """
    layers = {n: layer for n, layer in _layers(sites).items() if name in layer.branches}
    if not layers:
        raise ValueError(f"no adapter '{name}' to merge")
    for site, layer in layers.items():
        weight = layer.weight
        if weight.dtype not in _MERGEABLE or weight.layout != torch.strided or type(weight.data) is not Tensor:
            raise TypeError(
                f"layer '{site}' has a {weight.dtype} weight; only dense floating-point weights can take a branch in, "
                "so keep the branches beside it"
            )
        if any(branch.gate is not None for branch in layer.of(name)):
            raise ValueError(f"adapter '{name}' is gated on layer '{site}', so it cannot become part of the weight")
    for layer in layers.values():
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        for branch in layer.of(name):
            rows = layer.weight[branch.rows]
            rows.copy_(rows.to(wide) + branch.to(wide).delta(layer.weight.shape))
        del layer.branches[name]
