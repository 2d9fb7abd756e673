"""Branches, and what all layers that carry them share: which act, how much, and who watches the input.

A layer that carries branches is its own torch class, refined: it keeps the very same `weight` and `bias` Parameters,
so the keys of the model's state dict do not change, and the keys of an adapter are exactly those with `.branches.` in
them. `adapted.py` has the two layers, `lowrank.py` the verbs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

__all__ = ["Acting", "Adapted", "Branch", "Coefficient"]

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


class Acting(NamedTuple):
    """A branch with its coefficient for the input at hand, and the output rows that its B holds."""

    branch: Branch
    rows: tuple[int, int]
    B: Tensor
    coefficient: float | Tensor

    def within(self, rows: slice) -> "Acting":
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
    """What `AdaptedLinear` and `AdaptedConv2d` share: their branches, which of them act, and who watches the input.

    Attributes:
        dropout: the share of the input that branches do not see while they are trained, from 0 to below 1.
        draws: the generator that chooses it, on the layer's device; None outside of training, where nothing is dropped.
    """

    weight: Tensor
    branches: nn.ModuleDict
    dropout: float = 0.0
    draws: torch.Generator | None = None

    def carry(self) -> None:
        """Start without branches; called once the layer holds its weight."""
        self.branches = nn.ModuleDict()
        self.acting: Mapping[str, Coefficient] | None = None
        self.watchers: list[Callable[[Tensor], None]] = []

    def forward(self, input: Tensor) -> Tensor:
        self._show(input)
        y = super().forward(input)
        acting = self._acting(input)
        return self._add(y, self._dropped(input), acting) if acting else y

    @property
    def chosen(self) -> Mapping[str, Coefficient]:
        """The adapters that act on layers that carry them, in their order, with their coefficients."""
        # Sorted, so that the sum over branches is bit-equal after a reload, which may bring them in another order.
        return dict.fromkeys(sorted(self.branches), 1.0) if self.acting is None else self.acting

    @property
    def observed(self) -> bool:
        """Whether anyone sees the input: a watcher, or a coefficient that is a function of it."""
        gated = any(branch.gate is not None for name in self.chosen for branch in self.of(name))
        return bool(self.watchers) or gated or any(callable(c) for c in self.chosen.values())

    def _dropped(self, x: Tensor) -> Tensor:
        """The input as branches see it: in training a share of it is zero, and the rest is that much larger."""
        if not self.dropout or self.draws is None:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.dropout, generator=self.draws)
        return x * kept.div_(1 - self.dropout)

    def _show(self, input: Tensor) -> None:
        for watcher in self.watchers:
            watcher(input)

    def of(self, name: str) -> list[Branch]:
        """The branches of adapter `name` on this layer (several where rows need their own A)."""
        return list(cast(Iterable[Branch], self.branches[name])) if name in self.branches else []

    def _acting(self, x: Tensor) -> list[Acting]:
        """Branches that act on this input, those of equal rows beside each other."""
        found: list[Acting] = []
        for name, coefficient in self.chosen.items():
            for branch in self.of(name):
                gate = 1.0 if branch.gate is None else _value(branch.gate, x)
                total = _value(coefficient, x) * gate
                found.append(Acting(branch, (branch.rows.start, branch.rows.stop), branch.B, total))
        return sorted(found, key=lambda a: a.rows)

    def _add(self, y: Tensor, x: Tensor, acting: list[Acting]) -> Tensor:
        raise NotImplementedError  # abstract: the two layers below say how their branches compute

    def new_factors(self, rank: int, rows: slice, factorisation: str) -> tuple[Tensor, Tensor]:
        """Fresh (A, B) of zeros for `rank` and `rows`, in the shapes that `Branch` describes."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Carry the branches that `state_dict` holds, so that an adapter file restores itself.

        A branch that has the same place and the shapes of the file stays the same object and takes the numbers of the
        file, so who holds it, as `grow` returned it, holds what was loaded. The others are built anew.
        """
        mine = f"{prefix}branches."
        held = {tuple(key[len(mine) :].split(".")[:2]) for key in state_dict if key.startswith(mine)}
        for name in [name for name in self.branches if name not in {h[0] for h in held}]:
            del self.branches[name]
        for name in dict.fromkeys(h[0] for h in sorted(held)):
            numbers = sorted(int(h[1]) for h in held if h[0] == name)
            stored = [_Stored.read(state_dict, f"{mine}{name}.{i}.") for i in numbers]
            there = zip_longest(stored, self.of(name)[: len(stored)])
            restored = [s.fitted(own) or s.empty(self.weight.device) for s, own in there]
            self.branches[name] = nn.ModuleList(restored)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Stored(NamedTuple):
    """A branch as a state dict describes it."""

    A: Tensor
    B: Tensor
    rows: slice
    scale: float

    @classmethod
    def read(cls, state: Mapping[str, Tensor], prefix: str) -> "_Stored":
        start, stop = state[prefix + "extent"].tolist()
        return cls(state[prefix + "A"], state[prefix + "B"], slice(start, stop), float(state[prefix + "factor"]))

    def fitted(self, own: Branch | None) -> Branch | None:
        """`own` with the stored scale if it can take the stored numbers in as they are; None if it cannot."""
        if own is None or own.rows != self.rows:
            return None
        if any(o.shape != s.shape or o.dtype != s.dtype for o, s in ((own.A, self.A), (own.B, self.B))):
            return None
        own.scale = self.scale
        return own

    def empty(self, device: torch.device) -> Branch:
        """A new branch, into which the stored numbers can be loaded."""
        A, B = (torch.empty_like(stored, device=device) for stored in (self.A, self.B))
        return Branch(A, B, self.rows, self.scale).to(device)
