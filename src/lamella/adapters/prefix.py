"""Prefixes: keys and values that an attention sees before those of its tokens.

    softmax(Q [P_K; K]^T / sqrt d) [P_V; V]

Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021, arXiv 2101.00190.

Nothing in a network is replaced. Where a network computes an attention by torch's `scaled_dot_product_attention`, that
function gets longer keys and values, and a mask by which every token sees all of the prefix. Attentions are told apart
by the order in which a pass computes them, which is that of the blocks. A network that computes attentions in another
way would pass a prefix by in silence: `attentions_of` tells before what a pass computes, and `prefixing` raises if a
pass computed fewer attentions than there are prefixes.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["AttentionForm", "Prefix", "attentions_of", "prefixes_act", "prefixing"]

_ACT: ContextVar[bool] = ContextVar("lamella_prefixes_act", default=False)


class Prefix(NamedTuple):
    """What one attention sees before its tokens.

    Attributes:
        keys: (n, length, width), P_K of n samples, the attention's heads one after the other. Where it has fewer heads
            than the keys of the tokens, each is repeated, as in attentions that share heads of keys.
        values: (n, length, width), P_V.
    """

    keys: Tensor
    values: Tensor


class AttentionForm(NamedTuple):
    """What an attention of a pass looks like.

    Attributes:
        rows: how many independent attentions it computes, n if it is one for each of n samples.
        keys: the width of its keys, all heads together.
        values: the width of its values, all heads together.
    """

    rows: int
    keys: int
    values: int


class _Attending(TorchFunctionMode):
    """Calls another function wherever torch's attention is called."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = self.attend if func is F.scaled_dot_product_attention else func
        return called(*args, **(kwargs or {}))


@torch.no_grad()
def attentions_of(run: Callable[[], object]) -> list[AttentionForm]:
    """Return the attentions that can see a prefix, in the order in which a run of a network computes them."""
    found: list[AttentionForm] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        found.append(AttentionForm(len(key), key.shape[1] * key.shape[-1], value.shape[1] * value.shape[-1]))
        return F.scaled_dot_product_attention(query, key, value, *args, **options)

    with _Attending(attend):
        run()
    return found


@contextmanager
def prefixing(prefixes: Sequence[Prefix]) -> Generator[None]:
    """Within this context, which is one forward pass, the first attentions see prefixes.

    Args:
        prefixes: one for each of the first attentions of the pass, in their order; later ones see their tokens alone.

    Raises:
        RuntimeError: the pass computes fewer attentions, or some whose keys and values have other shapes.
    """
    left = list(prefixes)

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        if left:
            prefix = left.pop(0)
            attn_mask = _longer(_causal(query, key) if is_causal else attn_mask, key.shape[-2], prefix.keys.shape[1])
            key, value, is_causal = _joined(prefix.keys, key), _joined(prefix.values, value), False
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)

    before = _ACT.set(bool(left))
    try:
        with _Attending(attend):
            yield
    finally:
        _ACT.reset(before)
    if left:
        raise RuntimeError(
            f"{len(prefixes)} attentions should see a prefix, but the pass computed {len(prefixes) - len(left)} by "
            "torch's scaled_dot_product_attention, so the others would have passed theirs by"
        )


def prefixes_act() -> bool:
    """Whether attentions see prefixes now. Code that was compiled without them does not."""
    return _ACT.get()


def _joined(prefix: Tensor, tokens: Tensor) -> Tensor:
    """Return a prefix (n, length, width) before keys or values (n, heads, tokens, width of a head)."""
    heads, width = tokens.shape[1], tokens.shape[-1]
    own = prefix.shape[-1] // width
    if len(prefix) != len(tokens) or own * width != prefix.shape[-1] or not own or heads % own:
        raise RuntimeError(
            f"a prefix of the shape {tuple(prefix.shape)} does not fit an attention of {len(tokens)} samples with "
            f"{heads} heads of the width {width}"
        )
    # Where several heads of queries share one of keys, some networks repeat the keys before, if there is a mask.
    parted = prefix.to(tokens).unflatten(2, (own, width)).transpose(1, 2).repeat_interleave(heads // own, dim=1)
    return torch.cat([parted, tokens], dim=2)


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """Return the mask (queries, keys) by which the i-th query sees the first i keys."""
    return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()


def _longer(mask: Tensor | None, keys: int, length: int) -> Tensor | None:
    """Return the mask (..., queries, length + keys) by which every query sees all of a prefix and what it saw before.

    Args:
        mask: (..., queries, keys) or (..., queries, 1), bool or added to the scores; None shows everything.
        keys: how many keys there were.
        length: of the prefix.
    """
    if mask is None:
        return None
    return F.pad(mask.expand(*mask.shape[:-1], keys), (length, 0), value=True if mask.dtype is torch.bool else 0.0)
