"""Layers that carry low-rank branches: the mathematics of a branch, on linear layers and convolutions.

A layer that carries branches is its own torch class, refined: it keeps the very same `weight` and `bias` Parameters,
so the keys of the model's state dict do not change, and the keys of an adapter are exactly those with `.branches.` in
them. `lowrank.py` has the verbs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Adapted", "AdaptedConv2d", "AdaptedLinear", "Branch", "Coefficient"]

Coefficient = float | Tensor | Callable[[Tensor], Tensor]
"""What a branch is multiplied by: a number, one value a sample `(n,)`, or a function of the layer's input."""


class Branch(nn.Module):
    """One pair (A, B) on some output rows of one layer.

    Attributes:
        A: reduces. Linear: `(rank, d_in)`. Convolution: `(rank, c_in, k, k)` in the "conv" factorisation,
            `(rank * k, c_in * k)` in the "kernel" one.
        B: expands, zero at the start. Linear: `(d_rows, rank)`. Convolution: `(c_rows, rank, 1, 1)` or
            `(c_rows * k, rank * k)`.
        rows: the slice of output rows (channels) it writes to.
        scale: a constant factor of the update.
        gate: an optional coefficient that belongs to the branch and is saved with it when it is a module.
    """

    def __init__(self, A: Tensor, B: Tensor, rows: slice, scale: float = 1.0) -> None:
        super().__init__()
        self.A = nn.Parameter(A, requires_grad=False)
        self.B = nn.Parameter(B, requires_grad=False)
        self.rows, self.scale = rows, float(scale)
        # They travel as tensors, so that an adapter file describes itself; a forward pass never reads these, which
        # would make an accelerator wait.
        self.register_buffer("extent", torch.tensor([rows.start, rows.stop], dtype=torch.int64))
        self.register_buffer("factor", torch.tensor(self.scale, dtype=torch.float64))
        self.gate: Coefficient | None = None

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def delta(self, weight_shape: Sequence[int]) -> Tensor:
        """The update of the weight's rows, `(rows, *weight_shape[1:])`, in the precision of A and B."""
        product = self.B.flatten(1) @ self.A.flatten(1)
        return self.scale * product.reshape(-1, *weight_shape[1:])


class _Acting(NamedTuple):
    """A branch with its coefficient for the input at hand, and the output rows that its B holds."""

    branch: Branch
    rows: tuple[int, int]
    B: Tensor
    coefficient: float | Tensor

    def within(self, rows: slice) -> "_Acting":
        """What it does to these output rows alone, counted from the first of them; B is empty where it does nothing."""
        start, stop = max(self.rows[0], rows.start), min(self.rows[1], rows.stop)
        stop = max(start, stop)
        B = self.B[start - self.rows[0] : stop - self.rows[0]]
        return self._replace(rows=(start - rows.start, stop - rows.start), B=B)


def _value(coefficient: Coefficient, x: Tensor) -> float | Tensor:
    """What a coefficient is for the layer input x: a number, or a tensor with one value a sample."""
    value = coefficient(x) if callable(coefficient) else coefficient
    if isinstance(value, Tensor) and value.shape not in ((), (1,), (len(x),)):
        raise ValueError(
            f"a branch coefficient has shape {tuple(value.shape)}; "
            f"give a number or one value for each of the {len(x)} samples"
        )
    return value


class Adapted(nn.Module):
    """What `AdaptedLinear` and `AdaptedConv2d` share: their branches, which of them act, and who watches the input."""

    weight: Tensor
    branches: nn.ModuleDict

    def carry(self) -> None:
        """Start without branches; called once the layer holds its weight."""
        self.branches = nn.ModuleDict()
        self.acting: Mapping[str, Coefficient] | None = None
        self.watchers: list[Callable[[Tensor], None]] = []

    def forward(self, input: Tensor) -> Tensor:
        self._show(input)
        y = super().forward(input)
        acting = self._acting(input)
        return self._add(y, input, acting) if acting else y

    @property
    def observed(self) -> bool:
        """Whether anyone sees the input: a watcher, or a coefficient that is a function of it."""
        chosen = self.branches if self.acting is None else self.acting
        gated = any(branch.gate is not None for name in chosen for branch in self.of(name))
        return bool(self.watchers) or gated or any(callable(c) for c in (self.acting or {}).values())

    def _show(self, input: Tensor) -> None:
        for watcher in self.watchers:
            watcher(input)

    def of(self, name: str) -> list[Branch]:
        """The branches of adapter `name` on this layer (several where rows need their own A)."""
        return list(cast(Iterable[Branch], self.branches[name])) if name in self.branches else []

    def _acting(self, x: Tensor) -> list[_Acting]:
        """Branches that act on this input, those of equal rows beside each other."""
        # Sorted, so that the sum over branches is bit-equal after a reload, which may bring them in another order.
        chosen = dict.fromkeys(sorted(self.branches), 1.0) if self.acting is None else self.acting
        found: list[_Acting] = []
        for name, coefficient in chosen.items():
            for branch in self.of(name):
                gate = 1.0 if branch.gate is None else _value(branch.gate, x)
                total = _value(coefficient, x) * gate
                found.append(_Acting(branch, (branch.rows.start, branch.rows.stop), branch.B, total))
        return sorted(found, key=lambda a: a.rows)

    def _add(self, y: Tensor, x: Tensor, acting: list[_Acting]) -> Tensor:
        raise NotImplementedError  # abstract: the two layers below say how their branches compute

    def new_factors(self, rank: int, rows: slice, factorisation: str) -> tuple[Tensor, Tensor]:
        """Fresh (A, B) of zeros for `rank` and `rows`, in the shapes that `Branch` describes."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Rebuild the branches that `state_dict` holds, so that an adapter file restores itself."""
        mine = f"{prefix}branches."
        held = {tuple(key[len(mine) :].split(".")[:2]) for key in state_dict if key.startswith(mine)}
        for name in [name for name in self.branches if name not in {h[0] for h in held}]:
            del self.branches[name]
        for name in dict.fromkeys(h[0] for h in sorted(held)):
            numbers = sorted(int(h[1]) for h in held if h[0] == name)
            restored = [_branch_from(state_dict, f"{mine}{name}.{i}.", self.weight.device) for i in numbers]
            self.branches[name] = nn.ModuleList(restored)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _branch_from(state: Mapping[str, Tensor], prefix: str, device: torch.device) -> Branch:
    A, B = (torch.empty_like(state[prefix + letter], device=device) for letter in "AB")
    start, stop = state[prefix + "extent"].tolist()
    return Branch(A, B, slice(start, stop), float(state[prefix + "factor"])).to(device)


def _broadcast(coefficient: float | Tensor, following: int) -> float | Tensor:
    """Shape a per-sample coefficient `(n,)` so that it multiplies what has `following` dimensions after the sample's."""
    return coefficient.reshape(-1, *[1] * following) if isinstance(coefficient, Tensor) else coefficient


def _scaled(z: Tensor, acting: Sequence[_Acting], channel_dim: int) -> Tensor:
    """Multiply the reduced activations of the stacked branches by their coefficients and scales; channels come first or
    after the samples."""
    if all(not isinstance(a.coefficient, Tensor) and a.coefficient * a.branch.scale == 1.0 for a in acting):
        return z
    parts = z.split([a.branch.rank for a in acting], dim=channel_dim)
    following = z.ndim - (2 if channel_dim == 0 else 1)
    scaled = [p * (_broadcast(a.coefficient, following) * a.branch.scale) for p, a in zip(parts, acting, strict=True)]
    return _stack(scaled, channel_dim)


def _stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _by_rows(acting: Sequence[_Acting]) -> Iterator[tuple[slice, list[_Acting]]]:
    for (start, stop), group in groupby(acting, key=lambda a: a.rows):
        yield slice(start, stop), list(group)


class _AddToRows(torch.autograd.Function):
    """y[..., rows] += (B z)^T in place, for y (..., d_out), z (rank, all other positions of y) and B (rows, rank).

    Autograd's own write to a slice copies the whole gradient of y, once for each slice; this passes it on. Only products
    whose *first* matrix has few rows are formed: libraries are several times slower where the second has few columns.
    """

    @staticmethod
    def forward(y: Tensor, z: Tensor, B: Tensor, start: int) -> Tensor:
        y.flatten(0, -2)[:, start : start + len(B)].addmm_(z.T, B.T)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        y, z, B, ctx.start = inputs
        ctx.mark_dirty(y)
        ctx.save_for_backward(z, B)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        z, B = ctx.saved_tensors
        of_rows = gradients[0].flatten(0, -2)[:, ctx.start : ctx.start + len(B)]
        return gradients[0], B.T @ of_rows.T, (z @ of_rows).T, None


class AdaptedLinear(Adapted, nn.Linear):
    """`nn.Linear` whose output also receives the acting branches: `y[rows] += coefficient * scale * B A x`."""

    def forward_parts(self, input: Tensor, *parts: tuple[slice, slice]) -> list[Tensor]:
        """Only some output rows of some tokens: `forward(input)[:, tokens, rows]` for each part.

        Args:
            input: (n, tokens, d_in); watchers and coefficients that are functions of it see it whole.
            parts: (tokens, rows) each; rows with both ends.
        """
        self._show(input)
        acting = self._acting(input)
        return [self._part(input[:, tokens], rows, acting) for tokens, rows in parts]

    def _part(self, x: Tensor, rows: slice, acting: list[_Acting]) -> Tensor:
        y = F.linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])
        inside = [part for a in acting if len((part := a.within(rows)).B)]
        return self._add(y, x, inside) if inside else y

    def _add(self, y: Tensor, x: Tensor, acting: list[_Acting]) -> Tensor:
        # All branches are one wider branch: A's stacked, and B's of equal rows side by side.
        z = _stack([a.branch.A for a in acting], 0) @ x.flatten(0, -2).T
        z = _scaled(z.unflatten(1, x.shape[:-1]), acting, 0).flatten(1).to(y.dtype)
        start = 0
        for rows, group in _by_rows(acting):
            B = _stack([a.B for a in group], 1).to(y.dtype)
            y = cast(Tensor, _AddToRows.apply(y, z[start : start + B.shape[1]], B, rows.start))
            start += B.shape[1]
        return y

    def new_factors(self, rank: int, rows: slice, factorisation: str) -> tuple[Tensor, Tensor]:
        if factorisation != "conv":
            raise ValueError(f"a linear layer has no factorisation {factorisation!r}; leave it out")
        w = self.weight
        return w.new_zeros(rank, w.shape[1]), w.new_zeros(rows.stop - rows.start, rank)


class AdaptedConv2d(Adapted, nn.Conv2d):
    """`nn.Conv2d` with branches in one of two factorisations, which reach different sets of updates.

    "conv" (cloneofsimo, PEFT): A is a k x k convolution into `rank` channels, B a 1 x 1 convolution.
    "kernel" (loralib, ConvLoRA): `B @ A`, `(c_out k, rank k) @ (rank k, c_in k)`, viewed as the kernel; a coefficient
    scales the whole update.
    """

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return F.conv2d(x, kernel, None, self.stride, 0, self.dilation)
        return F.conv2d(x, kernel, None, self.stride, self.padding, self.dilation)

    def _add(self, y: Tensor, x: Tensor, acting: list[_Acting]) -> Tensor:
        convs = [a for a in acting if a.branch.A.ndim == 4]
        if convs:
            z = _scaled(self._convolve(x, _stack([a.branch.A for a in convs], 0)), convs, 1)
            start = 0
            for rows, group in _by_rows(convs):
                width = sum(a.branch.rank for a in group)
                y[:, rows] += F.conv2d(z[:, start : start + width], _stack([a.branch.B for a in group], 1))
                start += width
        for rows, group in _by_rows([a for a in acting if a.branch.A.ndim == 2]):
            y[:, rows] += self._kernels(x, group)
        return y

    def _kernels(self, x: Tensor, group: list[_Acting]) -> Tensor:
        """Summed updates of "kernel" branches on the same rows: one convolution if no coefficient is per sample."""
        deltas = [a.branch.delta(self.weight.shape) for a in group]
        if all(not isinstance(a.coefficient, Tensor) or a.coefficient.numel() == 1 for a in group):
            scaled = [a.coefficient * d for a, d in zip(group, deltas, strict=True)]
            return self._convolve(x, torch.stack(scaled).sum(0))
        out = self._convolve(x, torch.cat(deltas)).chunk(len(group), dim=1)
        scaled = [_broadcast(a.coefficient, 3) * o for a, o in zip(group, out, strict=True)]
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
