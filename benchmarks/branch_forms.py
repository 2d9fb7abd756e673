"""One adapted layer, forwards and backwards, in several forms of the same update: which is the cheapest here?

    OMP_NUM_THREADS=1 python benchmarks/branch_forms.py

A layer of width d -> 3 d whose last two thirds of rows (keys and values) carry a branch of rank 10 that trains its B;
1.00 is the frozen layer. "as shipped" adds B A x to the rows in place and hands the gradient on. "slice": the same by
autograd. "padded": B with zeros in the other rows, as it was before. "dense": W + B A anew in each step, by autograd.
"in the weight": W + B A anew in each step, yet the gradient of B from A x, without the dense one. All take turns in one
process; medians of the ratios within a round, in processor time, and the largest relative difference of B's gradient
from the padded form's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import typer
from rich.table import Table
from torch import Tensor, nn

from lamella.adapters.adapter import adapt, grow
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio
from lamella.experiments.bench.shown import show

RANK = 10
SHAPES = ((32, 65, 192), (8, 197, 768))  # images, tokens, width: ViT-Tiny at 128 pixels, ViT-B/16 at 224


def main(repeats: int = 25) -> None:
    """Time all forms."""
    table = Table("form", *(f"{d} wide, {n} x {tokens} tokens" for n, tokens, d in SHAPES), "difference")
    columns = [_measure(*shape, repeats) for shape in SHAPES]
    for form in columns[0]:
        worst = max(column[form][1] for column in columns)
        table.add_row(form, *(f"{column[form][0]:.2f}" for column in columns), f"{worst:.0e}")
    show(table, "branch-forms")


def _measure(n: int, tokens: int, d: int, repeats: int) -> dict[str, tuple[float, float]]:
    draw = lambda *shape: torch.randn(shape, generator=generator(0, "layer", *shape))  # noqa: E731
    x, g = draw(n, tokens, d).requires_grad_(), draw(n, tokens, 3 * d)
    layer = nn.Linear(d, 3 * d)
    W, b, model = layer.weight, layer.bias, nn.Sequential(layer).requires_grad_(False)
    (branch,) = grow(adapt(model, "0", slice(d, None)), "new", RANK, generator=generator(0, "A"))
    A, B = branch.A, branch.B.requires_grad_(True)
    B.data.copy_(draw(2 * d, RANK))
    padded = lambda M: F.pad(M, (0, 0, d, 0))  # noqa: E731
    forms: dict[str, Callable[[], Tensor]] = {
        "frozen": lambda: F.linear(x, W, b),
        "as shipped": lambda: model(x),
        "slice": lambda: _into_slice(F.linear(x, W, b), F.linear(F.linear(x, A), B), d),
        "padded": lambda: F.linear(x, W, b).add_(F.linear(F.linear(x, A), padded(B))),
        "dense": lambda: F.linear(x, W + padded(B @ A), b),
        "in the weight": lambda: _InTheWeight.apply(x, W, b, A, B),
    }  # type: ignore[dict-item]
    gradients: dict[str, Tensor | None] = {}

    def both_ways(form: str) -> None:
        x.grad = B.grad = None
        forms[form]().backward(g)
        gradients[form] = B.grad

    seconds = interleaved({form: partial(both_ways, form) for form in forms}, repeats, processor=True)
    exact = gradients["padded"]
    assert exact is not None
    apart = {form: 0.0 if G is None else float((G - exact).norm() / exact.norm()) for form, G in gradients.items()}
    return {form: (ratio(own, seconds["frozen"]), apart[form]) for form, own in seconds.items()}


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


if __name__ == "__main__":
    typer.run(main)
