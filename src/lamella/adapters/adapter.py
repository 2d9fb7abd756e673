"""Operations on low-rank adapters of any model: adapt, grow, using, watch, merge.

`adapt` is defined in `sites.py`; it turns layers into sites, which can have branches. An adapter is the set of all
branches of one name.

A branch is a pair (A, B) on some output rows of one layer: `dW[rows] = scale * B @ A`. A reduces, B expands (Hu et
al., "LoRA", ICLR 2022, arXiv 2106.09685; the letters are those of PEFT). `layers.py` has the layers that carry them.

Three ways in which a branch can fail are prevented:

1. *Silent bypass*: a model that reads `layer.weight` itself never calls the layer. `adapt` takes exact torch types
   only (a subclass may do anything with its weight), and `fit` raises when a trained tensor receives no gradient.
2. *Batch norm*: in train mode its statistics change although every parameter is frozen. Methods use eval mode for
   frozen phases.
3. *Rounding*: `merge` folds in float32 and refuses weights that are not dense floats.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lamella.adapters.branches import TOKENS, Adapted, Branch, Coefficient
from lamella.adapters.few_bits import FewBitsLinear
from lamella.adapters.forms import check_form, fill_shared, vectors
from lamella.adapters.layers import AdaptedConv2d, AdaptedLinear
from lamella.adapters.merged import Update, merged_until_now
from lamella.adapters.sites import Site, adapt, module_key
from lamella.adapters.tokens import counted
from lamella.common.checks import check_one_of

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
    "rows_read",
    "using",
    "watch",
]

T = TypeVar("T", bound=Callable[[Tensor], Any])
_MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def grow(
    sites: Sequence[Site],
    name: str,
    rank: int | Sequence[int],
    *,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
    factorisation: str = "conv",
    tokens: str = "all",
    form: str = "lora",
) -> list[Branch]:
    """Add an adapter: one branch of this name on every site, which does not change the outputs yet.

    Args:
        sites: the sites. Several sites of one layer give this layer several branches.
        name: the name of the adapter, without dots.
        rank: the rank of every branch, or a list with one rank for each site; at least 1.
        scale: a constant factor of the update.
        generator: draws A as LoRA does (Kaiming uniform with a = sqrt 5: U(-1, 1) / sqrt(fan in)). None leaves A zero,
            for methods that compute A themselves.
        factorisation: the factorisation of convolutions, "conv" or "kernel"; see `AdaptedConv2d`.
        tokens: what the branches act on: "all" tokens, or the "class" token of each sample, which is its first one.
        form: "lora" (A and B are trained, B is zero), "dora" (also the lengths of the weight's rows) or "vera" (A and B
            are drawn once for all sites and stay, two vectors are trained, of which one is zero).

    Returns:
        The new branches, in the order of `sites`.

    Raises:
        ValueError: the name exists already or is not allowed, a rank is below 1 or above the width of every
            layer, the number of ranks is wrong, a convolution has no class token, or the form is unknown or does not
            fit the factorisation or the tokens.
    """
    check_form(form, factorisation, tokens)
    ranks = [rank] * len(sites) if isinstance(rank, int) else list(rank)
    if "." in name or not name or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"adapter name {name!r} must be non-empty, without dots, and no attribute of torch's modules")
    if len(ranks) != len(sites):
        raise ValueError(f"{len(ranks)} ranks were given for {len(sites)} sites; give one number, or one for each site")
    if any(name in site.layer.branches for site in sites):
        raise ValueError(f"there is an adapter '{name}' already; merge it or choose another name")
    if min(ranks, default=1) < 1:
        raise ValueError(f"rank {min(ranks)} is too small; a branch needs a rank of at least 1")
    check_one_of("tokens", tokens, TOKENS)
    if tokens == "class" and (images := [site.name for site in sites if not isinstance(site.layer, AdaptedLinear)]):
        raise ValueError(f"layer '{images[0]}' is a convolution, which has no class token; choose tokens 'all'")
    widest = max((max(site.layer.weight.flatten(1).shape) for site in sites), default=0)
    if max(ranks, default=0) > widest:
        raise ValueError(f"rank {max(ranks)} is too large; the widest of these layers has {widest} inputs or outputs")
    grown: list[Branch] = []
    factors = [site.layer.new_factors(r, site.rows, factorisation) for site, r in zip(sites, ranks, strict=True)]
    if form == "vera" and generator is not None:
        fill_shared(factors, generator)
    for site, (A, B) in zip(sites, factors, strict=True):
        if form != "vera" and generator is not None:
            bound = A[0].numel() ** -0.5
            A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
        own = vectors(form, site.layer.weight[site.rows], B)
        branch = Branch(A, B, site.rows, scale, tokens, **own).to(A.device)
        if name not in site.layer.branches:
            site.layer.branches[name] = nn.ModuleList()
        cast(nn.ModuleList, site.layer.branches[name]).append(branch)
        grown.append(branch)
    return grown


def _layers(sites: Iterable[Site]) -> dict[str, Adapted]:
    return {site.name: site.layer for site in sites}


@contextmanager
def using(sites: Sequence[Site], names: str | Sequence[str] | Mapping[str, Coefficient] = ()) -> Generator[None]:
    """Within this context only the named adapters are active. Without names, the model acts as if it had no adapters.

    Args:
        sites: the sites whose layers are affected.
        names: adapter names, or a mapping from names to coefficients. A coefficient is a number, a tensor `(n,)` with
            one value per sample, `(n, rank)` on linear layers, or a function of the layer's input that returns one of
            these.

    Raises:
        ValueError: no site has an adapter of that name.
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
def watch(sites: Sequence[Site], make: Callable[[Adapted], T], *, padding_too: bool = False) -> Generator[dict[str, T]]:
    """Within this context every layer of `sites` shows its input to its own observer.

    Args:
        sites: several sites of one layer share one observer, since they share the input.
        make: builds an observer for a layer; it is called with each input `(n, ..., d_in)`, and where samples are
            padded to one length with the tokens that count, `(k, d_in)`.
        padding_too: show inputs as the layers have them, to observers that look at samples and not at single tokens;
            see tokens.py for what tells padding from tokens.

    Yields:
        The observers by layer name.
    """
    layers = _layers(sites)
    observers = {name: make(layer) for name, layer in layers.items()}
    shown = {name: seen if padding_too else _Counted(seen) for name, seen in observers.items()}
    for name, layer in layers.items():
        layer.watchers.append(shown[name])
    try:
        yield observers
    finally:
        for name, layer in layers.items():
            layer.watchers.remove(shown[name])


class _Counted:
    """Shows an observer only the tokens that count."""

    def __init__(self, observer: Callable[[Tensor], object]) -> None:
        self.observer = observer

    def __call__(self, x: Tensor) -> None:
        self.observer(counted(x))


def rows_read(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """By layer of a network, what branches of some adapters read of its inputs: the rows (ranks, d_in) of their A's."""
    rows: dict[str, Tensor] = {}
    for layer_name, layer in model.named_modules():
        if isinstance(layer, Adapted):
            found = [branch.A.detach().flatten(1) for name in names for branch in layer.of(name)]
            rows |= {layer_name: torch.cat(found)} if found else {}
    return rows


def adapter_state(sites: Sequence[Site], name: str) -> dict[str, Tensor]:
    """Return copies of the tensors of adapter `name` under their state-dict keys, to save them before a merge."""
    return {
        f"{site}.branches.{name}.{key}": value.detach().clone()
        for site, layer in _layers(sites).items()
        if name in layer.branches
        for key, value in layer.branches[name].state_dict().items()
    }


@torch.no_grad()
def merge(sites: Sequence[Site], name: str) -> None:
    """Add the update of adapter `name` to the weights, computed in float32 or better, and remove its branches.

    Args:
        sites: the sites of the adapter.
        name: the name of the adapter.

    Raises:
        ValueError: there is no such adapter, or a branch has a gate or is for class tokens, so its update differs
            between samples or tokens.
        TypeError: a weight is not a dense floating-point tensor, as in a quantised model.
    """
    layers = {n: layer for n, layer in _layers(sites).items() if name in layer.branches}
    if not layers:
        raise ValueError(f"no adapter '{name}' to merge")
    for site, layer in layers.items():
        if isinstance(layer, FewBitsLinear):
            raise TypeError(
                f"layer '{site}' keeps its weight in few bits, where the update of a branch would be rounded away; "
                "keep the branches, or load the backbone with storage 'float32'"
            )
        weight = layer.weight
        if weight.dtype not in _MERGEABLE or weight.layout != torch.strided or type(weight.data) is not Tensor:
            raise TypeError(
                f"layer '{site}' has a {weight.dtype} weight; only dense floating-point weights can be merged "
                "with a branch, so keep the branches"
            )
        if any(branch.gate is not None for branch in layer.of(name)):
            raise ValueError(f"adapter '{name}' is gated on layer '{site}', so it cannot become part of the weight")
        if any(branch.tokens == "class" for branch in layer.of(name)):
            raise ValueError(
                f"adapter '{name}' acts on class tokens alone, so it cannot become part of the weight of layer "
                f"'{site}', which all tokens pass; keep the branches"
            )
    for layer in layers.values():
        merged, updates = merged_until_now(layer.merged, layer.weight), [_update(b) for b in layer.of(name)]
        for branch, update in zip(layer.of(name), updates, strict=True):
            if update is None:
                _add_change(branch, layer.weight)
            else:
                update.add_to(layer.weight)
        layer.merged = merged.and_then(layer.weight, updates)
        del layer.branches[name]


def _update(branch: Branch) -> Update | None:
    """What a branch adds to the weight, as factors; None in the form "dora", whose change has no low rank."""
    if branch.magnitude is not None:
        return None
    A, B = (factor.detach().flatten(1).cpu().clone() for factor in (branch.A, branch.expansion))
    return Update(A, B, branch.scale, branch.rows)


def _add_change(branch: Branch, weight: Tensor) -> None:
    """Add what is no product of two factors to the weight, computed in float32 or better."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    rows = weight[branch.rows]
    rows.copy_(rows.to(wide) + branch.to(wide).update(weight.to(wide)))
