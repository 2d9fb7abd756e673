"""What adapters have added to a weight since it was loaded, as factors.

Merging changes a weight, and the factors of the change are often a small part of its size. They are remembered while
they are, so that the stored state of a model can hold them in place of the weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lamella.common.checksums import digest

__all__ = ["PARTS", "UNKNOWN", "MergedUpdates", "Update", "merged_until_now", "with_stored_updates"]

SHARE = 0.5
"""Of a weight's bytes: factors that take more are not kept, since a weight is loaded faster."""
PARTS = ("A", "B", "scales", "shapes")
"""The names of the tensors of stored updates."""


class Update(NamedTuple):
    """A low-rank change of some output rows of a weight: scale * B A.

    Attributes:
        A: (rank, m); for a linear layer m is the number of its inputs.
        B: (k, rank), where B A has as many numbers as the rows; for a linear layer k is their number.
        scale: the factor of the product.
        rows: the output rows.
    """

    A: Tensor
    B: Tensor
    scale: float
    rows: slice

    @torch.no_grad()
    def add_to(self, weight: Tensor) -> None:
        """Change the weight, computed in float32 or better and on its device."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        A, B = (factor.to(weight.device, wide) for factor in (self.A, self.B))
        rows = weight[self.rows]
        rows.copy_(rows.to(wide) + self.scale * (B @ A).reshape(rows.shape))


@dataclass(frozen=True)
class MergedUpdates:
    """The changes of one weight, in their order.

    Attributes:
        first: the digest of the weight before the first of them.
        last: the digest of the weight after the last of them. If the weight has another one, something else has
            changed it, and the factors do not tell what it is.
        updates: the changes; None if they are not all known, have no low rank, or have factors that are too large.
    """

    first: str
    last: str
    updates: tuple[Update, ...] | None

    def and_then(self, weight: Tensor, updates: "Sequence[Update | None]") -> "MergedUpdates":
        """The same with more changes.

        Args:
            weight: the weight with these changes too.
            updates: the changes; None for one that has no low rank.
        """
        if self.updates is None:
            return UNKNOWN
        known = [update for update in updates if update is not None]
        every = (*self.updates, *known)
        if len(known) < len(updates) or sum(u.A.nbytes + u.B.nbytes for u in every) > SHARE * weight.nbytes:
            return UNKNOWN
        return MergedUpdates(self.first, digest(weight), every)

    def tensors(self) -> dict[str, Tensor]:
        """The factors side by side, by PARTS; `with_stored_updates` makes the changes of them once more.

        Returns:
            "A" (sum of rank * m,), "B" (sum of k * rank,) and "scales" (n,) of n changes, and "shapes" (n, 4) int64:
            first row, last row + 1, rank, m.
        """
        every = self.updates or ()
        shapes = [(u.rows.start, u.rows.stop, *u.A.shape) for u in every]
        return {
            "A": torch.cat([u.A.flatten() for u in every]),
            "B": torch.cat([u.B.flatten() for u in every]),
            "scales": torch.tensor([u.scale for u in every], dtype=torch.float64),
            "shapes": torch.tensor(shapes, dtype=torch.int64),
        }


UNKNOWN = MergedUpdates("", "", None)
"""The changes of a weight that are not remembered."""


def merged_until_now(before: MergedUpdates | None, weight: Tensor) -> MergedUpdates:
    """The changes of a weight that is about to be changed.

    Args:
        before: those that are remembered; None before the first.
        weight: the weight as it is.
    """
    if before is not None and before.updates is None:
        return before
    now = digest(weight)
    if before is None:
        return MergedUpdates(now, now, ())
    return before if before.last == now else UNKNOWN


def with_stored_updates(parts: Mapping[str, Tensor], weight: Tensor) -> tuple[Tensor, MergedUpdates]:
    """Make the changes once more that `MergedUpdates.tensors` wrote.

    Args:
        parts: the tensors by PARTS.
        weight: the weight as it was before them; it is left as it is.

    Returns:
        The weight with the changes, and these.

    Raises:
        ValueError: they do not fit this weight.
    """
    updates, changed = _stored_updates(parts, weight), weight.clone()
    for update in updates:
        update.add_to(changed)
    return changed, merged_until_now(None, weight).and_then(changed, updates)


def _stored_updates(parts: Mapping[str, Tensor], weight: Tensor) -> tuple[Update, ...]:
    """Read the changes of a weight that `MergedUpdates.tensors` wrote.

    Args:
        parts: the tensors by PARTS.
        weight: the weight that they are for.

    Raises:
        ValueError: they do not fit this weight.
    """
    if not weight.ndim or not weight.is_floating_point():
        raise ValueError("there are stored updates of what is no weight")
    per_row = weight[0].numel()
    shapes: list[list[int]] = []
    if parts.keys() == {*PARTS} and parts["shapes"].ndim == 2 and parts["shapes"].dtype == torch.int64:
        shapes = parts["shapes"].tolist()
    if not shapes or not all(_fits(shape, len(weight), per_row) for shape in shapes):
        raise ValueError("the shapes of stored updates do not fit")
    sizes_A = [rank * m for _, _, rank, m in shapes]
    sizes_B = [(stop - start) * per_row // m * rank for start, stop, rank, m in shapes]
    whole = {"A": (sum(sizes_A),), "B": (sum(sizes_B),), "scales": (len(shapes),)}
    if any(parts[name].shape != size or not parts[name].is_floating_point() for name, size in whole.items()):
        raise ValueError("the factors of stored updates do not fit their shapes")
    pieces = zip(shapes, parts["A"].split(sizes_A), parts["B"].split(sizes_B), parts["scales"].tolist(), strict=True)
    return tuple(
        Update(A.reshape(rank, m), B.reshape(-1, rank), scale, slice(start, stop))
        for (start, stop, rank, m), A, B, scale in pieces
    )


def _fits(shape: Sequence[int], rows: int, per_row: int) -> bool:
    """Whether a product of factors of this shape can be added to a weight with so many rows of so many numbers."""
    if len(shape) != 4:
        return False
    start, stop, rank, m = shape
    return 0 <= start < stop <= rows and rank > 0 and m > 0 and (stop - start) * per_row % m == 0
