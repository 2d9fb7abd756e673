"""Branches, and the base class of all layers that have them.

A layer with branches is a subclass of its torch class. It keeps the same `weight` and `bias` Parameters, so the keys of
the model's state dict do not change. The keys of adapters are LAYER.branches.ADAPTER. and so on, see `adapter_names`.
`layers.py` has the two concrete layers, `adapter.py` the operations on adapters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.merged import MergedUpdates

__all__ = ["TOKENS", "Acting", "Adapted", "Branch", "Coefficient", "adapter_names"]

TOKENS = ("all", "class")
"""The tokens that a branch acts on: all of them, or the class token of each sample (see tokens.py) and no other."""

Coefficient = float | Tensor | Callable[[Tensor], Tensor]
"""The factor of a branch: a number, a tensor `(n,)` with one value per sample, or a function of the layer's input.

For a linear layer a tensor may also be `(n, rank)`: one value for each sample and row of A.
"""

VECTORS = ("magnitude", "inner", "outer")
"""The tensors that branches of the forms "dora" and "vera" have beside A and B."""


class Branch(nn.Module):
    """One pair (A, B) on some output rows of one layer.

    Attributes:
        A: the factor that reduces. For a linear layer `(rank, d_in)`. For a convolution `(rank, c_in, k, k)` in the
            "conv" factorisation and `(rank * k, c_in * k)` in the "kernel" factorisation.
        B: the factor that expands, initially zero. For a linear layer `(d_rows, rank)`. For a convolution
            `(c_rows, rank, 1, 1)` or `(c_rows * k, rank * k)`.
        rows: the slice of output rows (channels) that the branch changes.
        scale: a constant factor of the update.
        tokens: what the branch acts on, one of TOKENS. One for class tokens has no equal among the changes of a weight,
            which all tokens pass.
        magnitude: `(d_rows,)` the lengths of the weight's rows with the branch, as DoRA trains them beside the
            direction; None in other forms.
        inner: `(rank,)` what VeRA multiplies the columns of B by; None in other forms.
        outer: `(d_rows,)` what VeRA multiplies the rows of B by; None in other forms.
        gate: an optional coefficient that belongs to the branch. If it is a module, it is saved with the branch.
    """

    magnitude: nn.Parameter | None
    inner: nn.Parameter | None
    outer: nn.Parameter | None

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        rows: slice,
        scale: float = 1.0,
        tokens: str = "all",
        *,
        magnitude: Tensor | None = None,
        inner: Tensor | None = None,
        outer: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(A, requires_grad=False)
        self.B = nn.Parameter(B, requires_grad=False)
        for name, vector in zip(VECTORS, (magnitude, inner, outer), strict=True):
            self.register_parameter(name, None if vector is None else nn.Parameter(vector, requires_grad=False))
        self.rows = rows
        self.scale = float(scale)
        self.tokens = tokens
        # Rows and scale are also stored as tensors, so that an adapter file is complete. A forward pass does not read
        # these tensors, because that would make the CPU wait for an accelerator.
        self.register_buffer("extent", torch.tensor([rows.start, rows.stop], dtype=torch.int64))
        self.register_buffer("factor", torch.tensor(self.scale, dtype=torch.float64))
        if tokens == "class":  # other branches are stored as they always were
            self.register_buffer("class_token", torch.tensor(True))
        self.gate: Coefficient | None = None

    @property
    def rank(self) -> int:
        """The number of rows of A, which is the rank, or rank * k in the "kernel" factorisation."""
        return self.A.shape[0]

    @property
    def factors(self) -> list[nn.Parameter]:
        """What is trained: A, B and, in DoRA, the magnitude; in VeRA only the two vectors."""
        if self.inner is not None and self.outer is not None:
            return [self.inner, self.outer]
        return [self.A, self.B] if self.magnitude is None else [self.A, self.B, self.magnitude]

    @property
    def expansion(self) -> Tensor:
        """B, in VeRA with both vectors multiplied into it; of the shape of B."""
        if self.inner is None or self.outer is None:
            return self.B
        ones = [1] * (self.B.ndim - 2)
        return self.outer.reshape(-1, 1, *ones) * self.B * self.inner.reshape(1, -1, *ones)

    def delta(self, weight_shape: Sequence[int]) -> Tensor:
        """Compute scale * B A, `(rows, *weight_shape[1:])`, in the precision of A and B. See `update`."""
        product = self.expansion.flatten(1) @ self.A.flatten(1)
        return self.scale * product.reshape(-1, *weight_shape[1:])

    def gain(self, weight: Tensor) -> Tensor | None:
        """What DoRA multiplies each row of the weight with its update by, `(d_rows,)`; None in other forms.

        The length of a row is taken as a constant in training, as in section 4.3 of DoRA's paper and in PEFT.

        Args:
            weight: the whole weight of the layer.
        """
        if self.magnitude is None:
            return None
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            rows = weight[self.rows].to(torch.promote_types(weight.dtype, self.A.dtype))
            lengths = (rows + self.delta(weight.shape)).flatten(1).norm(dim=1)
        return self.magnitude / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)

    def update(self, weight: Tensor) -> Tensor:
        """Compute what the branch adds to the weight's rows, `(rows, *weight.shape[1:])`.

        Args:
            weight: the whole weight of the layer, without the branch.
        """
        delta, gain = self.delta(weight.shape), self.gain(weight)
        if gain is None:
            return delta
        rows = weight[self.rows]
        return gain.reshape(-1, *[1] * (weight.ndim - 1)) * (rows + delta) - rows


class Acting(NamedTuple):
    """An active branch for one input of the layer.

    Attributes:
        branch: the branch.
        rows: start and stop of the output rows that `B` covers.
        B: the rows of what expands: the branch's B with all that is multiplied into it.
        coefficient: a number, or a tensor with one value per sample, or with one per sample and row of A.
        gain: in DoRA, what these rows of the weight are multiplied by; else None.
    """

    branch: Branch
    rows: tuple[int, int]
    B: Tensor
    coefficient: float | Tensor
    gain: Tensor | None = None

    def within(self, rows: slice) -> "Acting":
        """Restrict the branch to some output rows, counted from the first of them. B is empty if none is covered."""
        start, stop = max(self.rows[0], rows.start), min(self.rows[1], rows.stop)
        stop = max(start, stop)
        inside = slice(start - self.rows[0], stop - self.rows[0])
        gain = None if self.gain is None else self.gain[inside]
        return self._replace(rows=(start - rows.start, stop - rows.start), B=self.B[inside], gain=gain)


def _change(acting: Acting, width: int) -> Tensor:
    """Return coefficient * (gain - 1) for all output rows, `(width,)` or `(n, width)`; 0 where nothing is gained."""
    assert acting.gain is not None
    change, (start, stop) = acting.gain - 1, acting.rows
    if isinstance(acting.coefficient, Tensor):
        change = acting.coefficient.reshape(-1, 1) * change
    else:
        change = acting.coefficient * change
    return F.pad(change, (start, width - stop))


def _value(coefficient: Coefficient, x: Tensor, rank: int | None) -> float | Tensor:
    """Evaluate a coefficient for the layer input x: a number, or a tensor (n,), or (n, rank) where a rank is given."""
    value = coefficient(x) if callable(coefficient) else coefficient
    if isinstance(value, Tensor) and value.shape not in ((), (1,), (len(x),), (len(x), rank)):
        raise ValueError(
            f"a branch coefficient has shape {tuple(value.shape)}; "
            f"give a number or one value for each of the {len(x)} samples"
        )
    return value


def _product(first: float | Tensor, second: float | Tensor) -> float | Tensor:
    """Multiply two coefficients, of which one may have a value for each row of A."""
    if isinstance(first, Tensor) and isinstance(second, Tensor) and {first.ndim, second.ndim} == {1, 2}:
        first, second = (f[:, None] if f.ndim == 1 else f for f in (first, second))
    return first * second


class Adapted(nn.Module):
    """The base class of `AdaptedLinear` and `AdaptedConv2d`: branches, which of them are active, and watchers.

    Attributes:
        weight: the weight of the layer.
        branches: the branches by adapter name.
        acting: the active adapters with their coefficients; None if all are active with coefficient 1.
        watchers: functions that are called with each input.
        merged: what merging has added to the weight; None if nothing was merged.
        set_for_a_pass: the names of the attributes that contexts around a pass set, and reset after it.
        dropout: the dropout rate of the branches' input during training, from 0 to below 1.
        draws: the generator of the dropout masks, on the layer's device; None outside of training, without dropout.
    """

    weight: Tensor
    bias: Tensor | None
    channels: int = -1  # the dimension of the outputs' channels
    branches: nn.ModuleDict
    set_for_a_pass: ClassVar[tuple[str, ...]] = ("acting",)
    dropout: float = 0.0
    draws: torch.Generator | None = None

    def carry(self) -> None:
        """Initialise without branches. Called once, after the layer has its weight."""
        self.branches = nn.ModuleDict()
        self.acting: Mapping[str, Coefficient] | None = None
        self.watchers: list[Callable[[Tensor], None]] = []
        self.merged: MergedUpdates | None = None

    def forward(self, input: Tensor) -> Tensor:
        self._show(input)
        y = self._frozen(input)
        acting = self._acting(input)
        if not acting:
            return y
        x = self._dropped(input)
        return self._add(self._turned(y, input, x, acting), x, acting)

    def _frozen(self, input: Tensor) -> Tensor:
        """What the layer computes by its own weight."""
        return super().forward(input)

    @property
    def chosen(self) -> Mapping[str, Coefficient]:
        """The active adapters with their coefficients, in a fixed order."""
        # Sorted, so that the sum over branches is bit-equal after loading, which may change the order of the branches.
        return dict.fromkeys(sorted(self.branches), 1.0) if self.acting is None else self.acting

    @property
    def observed(self) -> bool:
        """Whether a watcher or a coefficient depends on the input."""
        gated = any(branch.gate is not None for name in self.chosen for branch in self.of(name))
        return bool(self.watchers) or gated or any(callable(c) for c in self.chosen.values())

    def _dropped(self, x: Tensor) -> Tensor:
        """Apply dropout to the input of the branches: in training, a share is zero and the rest is scaled up."""
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
        """Return the active branches for this input, sorted by rows."""
        found: list[Acting] = []
        for name, coefficient in self.chosen.items():
            for branch in self.of(name):
                # A row of the weight has one length, so DoRA knows no coefficient for each row of A.
                rank = branch.rank if isinstance(self, nn.Linear) and branch.magnitude is None else None
                gate = 1.0 if branch.gate is None else _value(branch.gate, x, rank)
                total = _product(_value(coefficient, x, rank), gate)
                B, gain = branch.expansion, None if branch.magnitude is None else branch.gain(self.weight)
                B = B if gain is None else gain.reshape(-1, *[1] * (B.ndim - 1)) * B
                found.append(Acting(branch, (branch.rows.start, branch.rows.stop), B, total, gain))
        return sorted(found, key=lambda a: a.rows)

    def _turned(
        self, y: Tensor, input: Tensor, x: Tensor, acting: Sequence[Acting], rows: slice = slice(None)
    ) -> Tensor:
        """Add coefficient * (gain - 1) W x for each branch of the form "dora"; the others leave y as it is.

        Args:
            y: W input + bias, for these rows.
            input: the input of the layer.
            x: the input with dropout; the same object if nothing is dropped.
            acting: the active branches, their rows counted from the first of `rows`.
            rows: the output rows in y.
        """
        changes = [_change(a, y.shape[self.channels]) for a in acting if a.gain is not None]
        if not changes:
            return y
        bias = None if self.bias is None else self.bias[rows]
        along = [-1 if d == self.channels % y.ndim else 1 for d in range(y.ndim)]
        bare = self._bare(x, rows) if x is not input else y if bias is None else y - bias.reshape(along)
        change = torch.stack(torch.broadcast_tensors(*changes)).sum(0)
        shape = along if change.ndim == 1 else [len(change), *along[1:]]
        return y + change.reshape(shape).to(y.dtype) * bare

    def _bare(self, x: Tensor, rows: slice) -> Tensor:
        raise NotImplementedError  # W[rows] x

    def _add(self, y: Tensor, x: Tensor, acting: list[Acting]) -> Tensor:
        raise NotImplementedError  # each concrete layer computes its branches in its own way

    def new_factors(self, rank: int, rows: slice, factorisation: str) -> tuple[Tensor, Tensor]:
        """Create (A, B) of zeros for `rank` and `rows`, in the shapes that `Branch` describes."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Create the branches that `state_dict` holds, then load it.

        A branch with the same position and shapes as in the file stays the same object and receives the stored numbers,
        so a reference to it, as `grow` returned it, stays valid. The other branches are created anew.
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


def adapter_names(network: nn.Module) -> Callable[[str], str]:
    """Return a function that names the adapter that a key of the network's state belongs to; "" if to none.

    The word "branches" in a key does not tell: networks such as HRNet have modules of this name themselves.

    Args:
        network: the network, with its adapted layers.
    """
    mark = ".branches."
    adapted = {name for name, module in network.named_modules() if isinstance(module, Adapted)}

    def adapter_of(key: str) -> str:
        parts = key.split(mark)
        layers = (n for n in range(1, len(parts)) if mark.join(parts[:n]) in adapted)
        return next((parts[n].partition(".")[0] for n in layers), "")

    return adapter_of


class _Stored(NamedTuple):
    """A branch as stored in a state dict; `tensors` are A, B and, in some forms, vectors."""

    tensors: Mapping[str, Tensor]
    rows: slice
    scale: float
    tokens: str

    @classmethod
    def read(cls, state: Mapping[str, Tensor], prefix: str) -> "_Stored":
        start, stop = state[prefix + "extent"].tolist()
        tokens = "class" if prefix + "class_token" in state else "all"
        tensors = {name: state[prefix + name] for name in ("A", "B", *VECTORS) if prefix + name in state}
        return cls(tensors, slice(start, stop), float(state[prefix + "factor"]), tokens)

    def fitted(self, own: Branch | None) -> Branch | None:
        """Return `own` with the stored scale if the stored numbers can be loaded into it unchanged; else None."""
        if own is None or (own.rows, own.tokens) != (self.rows, self.tokens):
            return None
        there = dict(own.named_parameters(recurse=False))
        if there.keys() != self.tensors.keys():
            return None
        if any(there[n].shape != s.shape or there[n].dtype != s.dtype for n, s in self.tensors.items()):
            return None
        own.scale = self.scale
        return own

    def empty(self, device: torch.device) -> Branch:
        """Create a branch into which the stored numbers can be loaded."""
        made = {name: torch.empty_like(stored, device=device) for name, stored in self.tensors.items()}
        A, B = made.pop("A"), made.pop("B")
        return Branch(A, B, self.rows, self.scale, self.tokens, **made).to(device)
