"""Which tokens of the pass under way count: padding, which brings samples to one length, is no input of any layer.

A backbone says it once a pass. Who looks at the inputs of layers meanwhile sees the tokens that count and no others, so
what is learned of them does not depend on how long the other samples of a batch happen to be. Where a pass reads two
rows of tokens, as a decoder that looks at an encoder's vectors, each has a mask of its own.

The class token, where a network has one, is the first token of each sample that counts.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["class_places", "class_token", "counted", "counting", "mean_over_tokens"]


class _Mask:
    """A mask (n, tokens), and what follows from it, computed once a pass.

    Args:
        mask: of the tokens of the pass.
        beside: another tensor that its layers read, and the mask of that one; None where there is none.
    """

    def __init__(self, mask: Tensor, beside: "tuple[Tensor, _Mask] | None" = None) -> None:
        self.mask, self.beside = mask, beside

    def of(self, x: Tensor) -> "_Mask":
        """The mask of a layer's input, which is that other tensor or not."""
        return self.beside[1] if self.beside is not None and self.beside[0] is x else self

    @cached_property
    def places(self) -> Tensor:
        """(k,) of the tokens that count, all samples one after the other."""
        return self.mask.flatten().nonzero()[:, 0]

    @cached_property
    def first(self) -> Tensor:
        """(n,) place of each sample's first token that counts."""
        return self.mask.int().argmax(1)


_MASK: ContextVar[_Mask | None] = ContextVar("lamella_tokens_that_count", default=None)


@contextmanager
def counting(mask: Tensor, *, beside: tuple[Tensor, Tensor] | None = None) -> Generator[None]:
    """Within this context, which is one forward pass, only some tokens count.

    Args:
        mask: (n, tokens) bool, True for those that count; each sample has one at least.
        beside: (n, others, d), what some layers read in place of the pass's own tokens, and its mask (n, others). It is
            known by being this very tensor, so a batch in which both are equally long is read rightly, too.
    """
    before = _MASK.set(_Mask(mask, None if beside is None else (beside[0], _Mask(beside[1]))))
    try:
        yield
    finally:
        _MASK.reset(before)


def counted(x: Tensor) -> Tensor:
    """The tokens that count of a layer's input; all of it where nothing was said of them, or where it has no tokens.

    Args:
        x: (n, tokens, d), (n tokens, d), or (n, d) behind the place where tokens became one vector a sample.

    Returns:
        (k, d) where some tokens may not count, else x.

    Raises:
        RuntimeError: x has other tokens than the mask, so that nobody knows which of them count.
    """
    known = _MASK.get()
    known = known if known is None else known.of(x)
    if known is None or x.shape[:-1] == known.mask.shape[:1]:
        return x
    flat = x.flatten(0, -2)
    if x.shape[:-1] != known.mask.shape and x.shape[:-1] != (known.mask.numel(),):
        raise RuntimeError(
            f"a layer has an input of the shape {tuple(x.shape)}, but the batch has {tuple(known.mask.shape)} samples "
            "and tokens, so it is not known which of its rows are padding; adapt other layers"
        )
    return flat[known.places]


def mean_over_tokens(values: Tensor) -> Tensor:
    """(n, tokens, k) -> (n, k): the mean over each sample's tokens that count; (n, k) stays as it is.

    Args:
        values: numbers of each token of a layer's input, in the layout of that input.

    Raises:
        ValueError: the values have another shape, so it is not known which of them are one sample's.
    """
    if values.ndim == 2:
        return values
    _check_tokens(values)
    known = _MASK.get()
    if known is None:
        return values.mean(1)
    share = known.mask.to(values) / known.mask.sum(1, keepdim=True)
    return (share[:, None] @ values)[:, 0]


def class_token(x: Tensor) -> Tensor:
    """(n, tokens, d) -> (n, d): each sample's first token that counts.

    Raises:
        ValueError: x has another shape, so it is not known which of its rows are class tokens.
    """
    _check_tokens(x)
    known = _MASK.get()
    return x[:, 0] if known is None else x[torch.arange(len(x), device=x.device), known.first]


def class_places(x: Tensor) -> Tensor:
    """(n, tokens, d) -> (n,) int64: the row of each sample's class token in the (n tokens, d) rows of all samples.

    Raises:
        ValueError: x has another shape, so it is not known which of its rows are class tokens.
    """
    _check_tokens(x)
    known = _MASK.get()
    begin = torch.arange(len(x), device=x.device) * x.shape[1]
    return begin if known is None else begin + known.first


def _check_tokens(x: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"a layer's input has shape {tuple(x.shape)}, not (samples, tokens, width): no class token")
