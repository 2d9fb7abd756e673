"""Collects layer inputs in one pass over a task: class tokens, all tokens, or what the class token attends to."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Adapted, Site, watch
from lamella.adapters.tokens import class_token, counted
from lamella.memory.subspace import SecondMoment

__all__ = ["BASES", "Inputs", "check_basis", "gather"]

BASES = ("class_token", "tokens", "attention_pooled")
"""The vectors whose directions make a signature: the class token, all tokens, or, for each attention head, the mean of
the tokens weighted by the class token's attention."""


class Inputs:
    """The inputs of one layer in one pass over a task.

    Args:
        width: d, the number of the layer's inputs.
        basis: one of BASES.
    """

    def __init__(self, width: int, basis: str) -> None:
        self.basis, self.tokens = basis, []
        self.others = SecondMoment(width)

    def __call__(self, x: Tensor) -> None:
        # A copy, because a view would keep all tokens of the batch in memory.
        self.tokens.append(class_token(x).to(torch.float32, copy=True))
        if self.basis == "tokens":
            self.others(counted(x))

    @property
    def class_tokens(self) -> Tensor:
        """(n, d), one for each sample of the pass."""
        return torch.cat(self.tokens)

    @property
    def moment(self) -> Tensor:
        """(d, d) float64, the mean of h h^T over the vectors that `basis` names."""
        if self.basis != "class_token":
            return self.others.mean.double()
        H = self.class_tokens.double()
        return H.T @ H / len(H)


@contextmanager
def gather(model: nn.Module, sites: Sequence[Site], basis: str = "class_token") -> Generator[dict[str, Inputs]]:
    """Collect the inputs of the layers of sites, for `Signatures.extend`.

    Args:
        model: the network that the sites are in.
        sites: the sites whose layers are read.
        basis: one of BASES.

    Yields:
        The inputs by the name of the layer, which every pass within the context adds to.

    Raises:
        ValueError: the basis is unknown, the model has no class token, or its attention cannot be read.
    """
    check_basis(model, sites, basis)
    hooks: list[Any] = []
    with watch(sites, lambda layer: Inputs(layer.weight.shape[1], basis), padding_too=True) as inputs:
        try:
            if basis == "attention_pooled":
                for name, layer in {site.name: site.layer for site in sites}.items():
                    hooks += _pool(name, model.get_submodule(name.rpartition(".")[0]), layer, inputs[name].others)
            yield inputs
        finally:
            for hook in hooks:
                hook.remove()


def check_basis(model: nn.Module, sites: Sequence[Site], basis: str) -> None:
    """Refuse a basis that cannot be collected from this model, before anything is learned.

    Args:
        model: the network that the sites are in.
        sites: the sites whose layers would be read.
        basis: one of BASES.

    Raises:
        ValueError: the basis is unknown, the model has no class token, or its attention cannot be read.
    """
    if basis not in BASES:
        raise ValueError(f"basis '{basis}' is unknown; use {', '.join(map(repr, BASES))}")
    if not getattr(model, "has_class_token", False):
        raise ValueError("this backbone has no class token, by which tasks are recognised; use one that has")
    for site in sites if basis == "attention_pooled" else ():
        attention = model.get_submodule(site.name.rpartition(".")[0])
        if not site.name.endswith(".qkv") or not all(hasattr(attention, a) for a in ("num_heads", "scale", "proj")):
            raise ValueError(
                f"basis 'attention_pooled' needs the attention of a fused 'qkv' layer; '{site.name}' does not show it, "
                "so use 'class_token' or 'tokens'"
            )


def _pool(name: str, attention: Any, layer: Adapted, seen: SecondMoment) -> list[Any]:
    """Register hooks that pass sum_j a_j x_j to `seen`: for each head, what the class token attends to in the inputs.

    The attention a is computed again from queries and keys. Every batch is checked against the input of the output
    projection, since the model may compute its attention in another way, with a position bias or a gate.
    """
    mixed: list[Tensor] = []

    def pool(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        n, tokens = output.shape[:2]
        with torch.autocast(output.device.type, enabled=False):
            q, k, v = output.float().reshape(n, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k = (getattr(attention, norm, nn.Identity())(t) for norm, t in (("q_norm", q), ("k_norm", k)))
            weights = (q[:, :, :1] * attention.scale @ k.mT).softmax(-1)
            seen((weights @ args[0].float()[:, None]).squeeze(2))
            mixed.append((weights @ v).reshape(n, -1))

    def compare(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        ours, theirs = mixed.pop(), args[0][:, 0].float()
        if ours.shape != theirs.shape or (ours - theirs).norm() > 0.03 * theirs.norm():
            raise ValueError(
                f"the attention around layer '{name}' is not the plain softmax of queries and keys, so basis "
                "'attention_pooled' cannot be computed; use 'class_token' or 'tokens'"
            )

    return [layer.register_forward_hook(pool), attention.proj.register_forward_pre_hook(compare)]
