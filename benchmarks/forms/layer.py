"""One adapted layer, forwards and backwards, in several forms of the same update."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forms.case import Case, Form, Seconds
from lamella.adapters.adapter import adapt, grow
from lamella.common.randomness import generator

RANK = 10
SHAPES = ((32, 65, 192), (8, 197, 768))  # images, tokens, width: ViT-Tiny at 128 pixels, ViT-B/16 at 224


def branch_forms(small: bool = False) -> Iterator[Case]:
    """One layer of width d -> 3 d whose last two thirds of rows carry a branch that trains its B; 1.00 is frozen.

    "As shipped" adds B A x to the rows in place and hands the gradient on. "Slice": the same by autograd. "Padded": B
    with zeros in the other rows. "Dense": W + B A anew in each step, by autograd. "In the weight": W + B A anew in each
    step, yet the gradient of B from A x, without the dense one. The difference is that of B's gradient from the padded
    form's.
    """
    for n, tokens, d in ((2, 3, 16),) if small else SHAPES:
        yield _case(n, tokens, d)


def _case(n: int, tokens: int, d: int) -> Case:
    draw = lambda *shape: torch.randn(shape, generator=generator(0, "layer", *shape))  # noqa: E731
    x, g = draw(n, tokens, d).requires_grad_(), draw(n, tokens, 3 * d)
    layer = nn.Linear(d, 3 * d)
    W, b, model = layer.weight, layer.bias, nn.Sequential(layer).requires_grad_(False)
    (branch,) = grow(adapt(model, "0", slice(d, None)), "new", RANK, generator=generator(0, "A"))
    A, B = branch.A, branch.B.requires_grad_(True)
    B.data.copy_(draw(2 * d, RANK))
    padded = lambda M: F.pad(M, (0, 0, d, 0))  # noqa: E731
    forms: dict[str, Any] = {
        "frozen": lambda: F.linear(x, W, b),
        "as shipped": lambda: model(x),
        "slice": lambda: _into_slice(F.linear(x, W, b), F.linear(F.linear(x, A), B), d),
        "padded": lambda: F.linear(x, W, b).add_(F.linear(F.linear(x, A), padded(B))),
        "dense": lambda: F.linear(x, W + padded(B @ A), b),
        "in the weight": lambda: _InTheWeight.apply(x, W, b, A, B),
    }
    gradients: dict[str, Tensor | None] = {}

    def both_ways(form: str) -> None:
        x.grad = B.grad = None
        forms[form]().backward(g)
        gradients[form] = B.grad

    def notes(seconds: Seconds) -> dict[str, dict[str, str]]:
        exact = gradients["padded"]
        assert exact is not None
        apart = {form: float((G - exact).norm() / exact.norm()) for form, G in gradients.items() if G is not None}
        return {form: {"difference": f"{away:.0e}"} for form, away in apart.items()}

    turns: dict[str, Form] = {form: partial(both_ways, form) for form in forms}
    return Case(f"{d} wide, {n} x {tokens} tokens", turns, "frozen", n, notes=notes)


def _into_slice(y: Tensor, update: Tensor, start: int) -> Tensor:
    y[..., start:] += update
    return y


class _InTheWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor) -> Tensor:
        W = W.clone()
        W[-len(B) :].addmm_(B, A)
        ctx.save_for_backward(W, A @ x.flatten(0, -2).T)
        ctx.rows = len(B)
        return F.linear(x, W, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, Tensor]:
        W, z = ctx.saved_tensors
        (g,) = gradients
        return g @ W, None, None, None, (z @ g.flatten(0, -2)[:, -ctx.rows :]).T
