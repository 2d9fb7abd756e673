"""The two layers that can have branches: linear and convolution.

All active branches of a layer are computed as one wider branch: the A's are stacked, and the B's of equal rows are
concatenated.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.branches import Acting, Adapted
from lamella.adapters.few import parted
from lamella.adapters.tokens import class_places, class_token

__all__ = ["AdaptedConv2d", "AdaptedLinear"]


def _scaled(z: Tensor, acting: Sequence[Acting], channel_dim: int) -> Tensor:
    """Multiply the reduced activations of the stacked branches by their coefficients and scales.

    Args:
        z: the activations, `(channels, samples, ...)` or `(samples, channels, ...)`.
        acting: the active branches, in the order of their channels.
        channel_dim: the position of the channels in `z`, 0 or 1.
    """
    if all(not isinstance(a.coefficient, Tensor) and a.coefficient * a.branch.scale == 1.0 for a in acting):
        return z
    samples = z.shape[1 - channel_dim]
    factors = _stack([_rows_of_factors(a, z, samples) for a in acting], 0)
    factors = factors if channel_dim == 0 else factors.T
    return z * factors.reshape(*factors.shape, *[1] * (z.ndim - 2))


def _rows_of_factors(acting: Acting, z: Tensor, samples: int) -> Tensor:
    """Return the factor of each row and sample of a branch's z, (rank, samples)."""
    factor, shape = acting.coefficient * acting.branch.scale, (acting.branch.rank, samples)
    if isinstance(factor, Tensor) and factor.ndim == 2:
        return factor.T
    return factor.reshape(-1).expand(shape) if isinstance(factor, Tensor) else z.new_full(shape, factor)


def _stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _by_rows(acting: Sequence[Acting]) -> Iterator[tuple[slice, list[Acting]]]:
    for (start, stop), group in groupby(acting, key=lambda a: a.rows):
        yield slice(start, stop), list(group)


class _AddToRows(torch.autograd.Function):
    """y[..., rows] += (B z)^T in place, for y (..., d_out), z (rank, k) and B (rows, rank).

    The k columns of z are for all positions of y, or for those among them that `places` (k,) names.

    For a write to a slice, autograd copies the whole gradient of y, once for each slice. This function passes the
    gradient on without a copy. In all products the *first* matrix has few rows: products in which the second matrix has
    few columns take several times as long.
    """

    @staticmethod
    def forward(y: Tensor, z: Tensor, B: Tensor, start: int, places: Tensor | None) -> Tensor:
        # `view` fails where `flatten` would silently return a copy of y.
        of_rows = y.view(-1, y.shape[-1])[:, start : start + len(B)]
        if places is None:
            of_rows.addmm_(z.T, B.T)
        else:
            of_rows.index_add_(0, places, z.T @ B.T)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, Tensor | None], output: Tensor) -> None:
        y, z, B, ctx.start, ctx.places = inputs
        ctx.mark_dirty(y)
        ctx.save_for_backward(z, B)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        z, B = ctx.saved_tensors
        of_rows = gradients[0].flatten(0, -2)[:, ctx.start : ctx.start + len(B)]
        of_rows = of_rows if ctx.places is None else of_rows[ctx.places]
        to_z, to_B = ctx.needs_input_grad[1:3]
        return gradients[0], B.T @ of_rows.T if to_z else None, (z @ of_rows).T if to_B else None, None, None


class AdaptedLinear(Adapted, nn.Linear):
    """`nn.Linear` that adds the active branches to its output: `y[rows] += coefficient * scale * B A x`.

    Branches for class tokens add to the rows of these alone, at the cost of one token a sample.
    """

    def forward_parts(self, input: Tensor, *parts: tuple[slice, slice]) -> list[Tensor]:
        """Compute only some output rows of some tokens: `forward(input)[:, tokens, rows]` for each part.

        Args:
            input: `(n, tokens, d_in)`. Watchers and coefficients that depend on the input receive all of it.
            parts: pairs of slices (tokens, rows). The slice of rows has a start and a stop.

        Returns:
            `(n, tokens of the part, rows of the part)` for each part.
        """
        self._show(input)
        acting = self._acting(input)
        of_all = [a for a in acting if a.branch.tokens == "all"]  # what begins later has no class token
        return [self._part(input[:, t], rows, of_all if t.start else acting) for t, rows in parts]

    def _part(self, x: Tensor, rows: slice, acting: list[Acting]) -> Tensor:
        y = self._rows(x, rows, None if self.bias is None else self.bias[rows])
        inside = [part for a in acting if len((part := a.within(rows)).B)]
        if not inside:
            return y
        dropped = self._dropped(x)
        return self._add(self._turned(y, x, dropped, inside, rows), dropped, inside)

    def _bare(self, x: Tensor, rows: slice) -> Tensor:
        return self._rows(x, rows, None)

    def _rows(self, x: Tensor, rows: slice, bias: Tensor | None) -> Tensor:
        """Compute W[rows] x + bias."""
        return F.linear(x, self.weight[rows], bias)

    def _add(self, y: Tensor, x: Tensor, acting: list[Acting]) -> Tensor:
        of_class = [a for a in acting if a.branch.tokens == "class"]
        if not of_class:
            return self._add_to_all(y, x, acting)
        of_all = [a for a in acting if a.branch.tokens == "all"]
        y = self._add_to_all(y, x, of_all) if of_all else y
        return self._add_at(y, class_token(x), of_class, class_places(x))

    def _add_to_all(self, y: Tensor, x: Tensor, acting: list[Acting]) -> Tensor:
        """Add branches to all positions of y; where a sample has few of many, these alone are computed."""
        dense, gathered = parted(acting, len(x))
        y = self._add_at(y, x, dense, None) if dense else y
        for few in gathered:
            few.add(y, x)
        return y

    def _add_at(self, y: Tensor, x: Tensor, acting: list[Acting], places: Tensor | None) -> Tensor:
        """Add branches to all positions of y, or to k of its rows; x (..., d_in) or (k, d_in) has their inputs."""
        z = _stack([a.branch.A for a in acting], 0) @ x.flatten(0, -2).T
        z = _scaled(z.unflatten(1, x.shape[:-1]), acting, 0).flatten(1).to(y.dtype)
        start = 0
        for rows, group in _by_rows(acting):
            B = _stack([a.B for a in group], 1).to(y.dtype)
            y = cast(Tensor, _AddToRows.apply(y, z[start : start + B.shape[1]], B, rows.start, places))
            start += B.shape[1]
        return y

    def new_factors(self, rank: int, rows: slice, factorisation: str) -> tuple[Tensor, Tensor]:
        if factorisation != "conv":
            raise ValueError(f"a linear layer has no factorisation {factorisation!r}; leave it out")
        w = self.weight
        return w.new_zeros(rank, w.shape[1]), w.new_zeros(rows.stop - rows.start, rank)


def _per_sample(coefficient: float | Tensor) -> float | Tensor:
    """Reshape a coefficient so that it multiplies activations (n, c, h, w)."""
    return coefficient.reshape(-1, 1, 1, 1) if isinstance(coefficient, Tensor) else coefficient


class AdaptedConv2d(Adapted, nn.Conv2d):
    """`nn.Conv2d` with branches in one of two factorisations, which can represent different sets of updates.

    "conv" (cloneofsimo, PEFT): A is a k x k convolution to `rank` channels, B a 1 x 1 convolution.
    "kernel" (loralib, ConvLoRA): the product `B @ A`, `(c_out k, rank k) @ (rank k, c_in k)`, is reshaped to a kernel.
    A coefficient scales the whole update.
    """

    channels = 1

    def _bare(self, x: Tensor, rows: slice) -> Tensor:
        return self._convolve(x, self.weight[rows])

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return F.conv2d(x, kernel, None, self.stride, 0, self.dilation)
        return F.conv2d(x, kernel, None, self.stride, self.padding, self.dilation)

    def _add(self, y: Tensor, x: Tensor, acting: list[Acting]) -> Tensor:
        convs = [a for a in acting if a.branch.A.ndim == 4]
        if convs:
            z = _scaled(self._convolve(x, _stack([a.branch.A for a in convs], 0)), convs, 1)
            start = 0
            for rows, group in _by_rows(convs):
                width = sum(a.branch.rank for a in group)
                y[:, rows] += F.conv2d(z[:, start : start + width], _stack([a.B for a in group], 1))
                start += width
        for rows, group in _by_rows([a for a in acting if a.branch.A.ndim == 2]):
            y[:, rows] += self._kernels(x, group)
        return y

    def _kernels(self, x: Tensor, group: list[Acting]) -> Tensor:
        """Sum the outputs of "kernel" branches on the same rows, in one convolution if no coefficient is per sample."""
        deltas = [a.branch.delta(self.weight.shape) for a in group]
        if all(not isinstance(a.coefficient, Tensor) or a.coefficient.numel() == 1 for a in group):
            scaled = [a.coefficient * d for a, d in zip(group, deltas, strict=True)]
            return self._convolve(x, torch.stack(scaled).sum(0))
        out = self._convolve(x, torch.cat(deltas)).chunk(len(group), dim=1)
        scaled = [_per_sample(a.coefficient) * o for a, o in zip(group, out, strict=True)]
        return torch.stack(scaled).sum(0)

    def new_factors(self, rank: int, rows: slice, factorisation: str) -> tuple[Tensor, Tensor]:
        c_in, height, width = self.weight.shape[1:]
        c_rows = rows.stop - rows.start
        if factorisation == "conv":
            return self.weight.new_zeros(rank, c_in, height, width), self.weight.new_zeros(c_rows, rank, 1, 1)
        if factorisation != "kernel":
            raise ValueError(f"unknown factorisation {factorisation!r}; choose 'conv' or 'kernel'")
        if height != width:
            raise ValueError(f"the 'kernel' factorisation needs a square kernel, got {height} x {width}; use 'conv'")
        k = height
        return self.weight.new_zeros(rank * k, c_in * k), self.weight.new_zeros(c_rows * k, rank * k)
