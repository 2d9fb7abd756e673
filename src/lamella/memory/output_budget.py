"""A layer's budget of output directions, shared out among the updates of all tasks.

E2-LoRA (arXiv 2605.27482) protects output directions, where GPM and InfLoRA protect those of inputs. An update B A of a
layer is rotated so that its ranks come in the order of how much the outputs vary along them. The last ranks are cut
later, and the output directions of these become those of a new update.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamella.memory.resizable import Resizable
from lamella.memory.subspace import numerical_rank

__all__ = ["InputCovariance", "OutputBudget", "Update", "keep_counts", "rotated"]

GRID = 100_000
"""Thresholds are multiples of 1 / GRID, the largest is 1 - 1 / GRID."""


class InputCovariance(nn.Module):
    """The covariance of a layer's inputs over tokens, with sums in float64. Call it with inputs `(..., d)`.

    Args:
        width: d, the number of inputs.
    """

    adds = True  # its buffers are sums over samples
    products: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("products", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, x: Tensor) -> None:
        tokens = x.reshape(-1, x.shape[-1]).double()
        if self.total.device != tokens.device:
            self.to(tokens.device)
        self.products.addmm_(tokens.T, tokens)
        self.total += tokens.sum(0)
        self.count += len(tokens)

    @property
    def covariance(self) -> Tensor:
        """(d, d): the sum of (x - mean)(x - mean)^T over n tokens, divided by n - 1, or by 1 for a single token."""
        mean = self.total / self.count.clamp_min(1)
        return (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1).clamp_min(1)


class Update(NamedTuple):
    """An update B A of a weight, rank by rank.

    Attributes:
        A: (r, d).
        B: (R, r), orthonormal columns.
        variances: (r,) the variance of the outputs along each column of B, largest first.
    """

    A: Tensor
    B: Tensor
    variances: Tensor


def rotated(A: Tensor, B: Tensor, covariance: Tensor) -> Update:
    """Rotate an update B A so that its ranks come in the order of the variance of the outputs along them.

    The outputs B A x have the covariance (B A) C (B A)^T, where C is that of the inputs. The new B are its
    eigenvectors, and the new A is B_new^T B A, so that the product stays. Columns along which the outputs do not vary
    follow after the others: first those that the product B A needs besides, then any within the span of the old B.

    Args:
        A: (r, d).
        B: (R, r), r at most R.
        covariance: C (d, d).

    Returns:
        The same update with r ranks, in float64.
    """
    A, B, C = A.double(), B.double(), covariance.double()
    Q, within = torch.linalg.qr(B)  # orthonormal (R, r), also where columns of B depend on each other
    update = within @ A  # B A in the coordinates of Q, (r, d)
    values, vectors = torch.linalg.eigh(C)
    spread = update @ (vectors * values.clamp_min(0).sqrt())
    first, deviations, _ = torch.linalg.svd(spread, full_matrices=False)
    first = first[:, : numerical_rank(deviations, deviations[0], 1e-6)]
    rest = update - first @ (first.T @ update)
    second, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
    second = second[:, : numerical_rank(sizes, torch.linalg.matrix_norm(update, 2), 1e-8)]
    W = torch.cat([first, second], dim=1)
    W = torch.cat([W, torch.linalg.qr(W, mode="complete")[0][:, W.shape[1] :]], dim=1)
    variances = torch.zeros(len(W), dtype=W.dtype, device=W.device)
    variances[: first.shape[1]] = deviations[: first.shape[1]].square()
    return Update(W.T @ update, Q @ W, variances)


def keep_counts(variances: Sequence[Tensor], limit: float, totals: Sequence[float] | None = None) -> list[int]:
    """Return how many of the first ranks each old update keeps, so that all together are at most `limit`.

    One threshold holds for all updates. An update keeps one rank more than there are ranks whose cumulative share of
    its variance is at most the threshold. The threshold starts at 0.99999 and falls by 1e-5 until they are few enough.

    Args:
        variances: by update, (r,) of its ranks, largest first.
        limit: the largest sum of the counts.
        totals: by update, what its shares are of; the sum of its variances if left out.

    Returns:
        The counts, each from 1 to r.

    Raises:
        RuntimeError: even one rank for each update is too many.
    """
    wholes: Sequence[float | None] = [None] * len(variances) if totals is None else totals
    shares = [_cumulative_shares(v, whole) for v, whole in zip(variances, wholes, strict=True)]

    def counts(step: int) -> list[int]:
        threshold = (GRID - 1 - step) / GRID
        return [min(1 + int((share <= threshold).sum()), len(share)) for share in shares]

    # The counts fall with the threshold, so the first step that suffices is found by halving.
    step = bisect_left(range(GRID), True, key=lambda step: sum(counts(step)) <= limit)
    if step == GRID:
        raise RuntimeError(
            f"the budget of ranks has no room for {len(shares) + 1} tasks, each of which needs one; give a larger "
            "`budget`"
        )
    return counts(step)


def _cumulative_shares(variances: Tensor, total: float | None) -> Tensor:
    """Return the share of the variance in the first ranks, up to each of them; ones where there is no variance."""
    sums = variances.double().cpu().cumsum(0)
    whole = float(sums[-1]) if total is None else total
    return sums / whole if whole > 0 else torch.ones_like(sums)


class OutputBudget(Resizable):
    """The updates of all old tasks on some output rows of one layer, rank by rank.

    Args:
        d_in: d, the number of inputs.
        d_out: R, the number of output rows.

    Attributes:
        A: (k, d), the rows of all updates, oldest first.
        B: (R, k), the columns of all updates.
        variances: (k,), see `Update`.
        ranks: (tasks,) how many ranks each update has.
        totals: (tasks,) the sum of the variances of each update as it was added.
    """

    resizable = ("A", "B", "variances", "ranks", "totals")
    for_training = True
    A: Tensor
    B: Tensor
    variances: Tensor
    ranks: Tensor
    totals: Tensor

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.register_buffer("A", torch.zeros(0, d_in))
        self.register_buffer("B", torch.zeros(d_out, 0))
        self.register_buffer("variances", torch.zeros(0))
        self.register_buffer("ranks", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("totals", torch.zeros(0, dtype=torch.float64))

    def add(self, update: Update) -> None:
        """Append the update of a new task."""
        self.A = torch.cat([self.A, update.A.to(self.A)])
        self.B = torch.cat([self.B, update.B.to(self.B)], dim=1)
        self.variances = torch.cat([self.variances, update.variances.to(self.variances)])
        self.ranks = torch.cat([self.ranks, self.ranks.new_tensor([len(update.A)])])
        self.totals = torch.cat([self.totals, update.variances.to(self.variances).double().sum()[None]])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Models stored before the option `shares` existed have no totals: what an update still has counts as all of it.
        if f"{prefix}totals" not in state_dict and {f"{prefix}variances", f"{prefix}ranks"} <= state_dict.keys():
            parts = state_dict[f"{prefix}variances"].double().split(state_dict[f"{prefix}ranks"].tolist())
            state_dict[f"{prefix}totals"] = torch.tensor([float(part.sum()) for part in parts], dtype=torch.float64)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def release(self, limit: float, *, of_whole: bool = False) -> tuple[Tensor, Tensor]:
        """Cut the last ranks of old updates until they have at most `limit` ranks together; see `keep_counts`.

        Args:
            limit: how many ranks they may keep.
            of_whole: whether the shares of ranks are of an update as it was added, and not of what it has still.

        Returns:
            What was cut, oldest update first: A (k, d) and B (R, k).
        """
        ranks: list[int] = self.ranks.tolist()
        kept = keep_counts(self.variances.split(ranks), limit, self.totals.tolist() if of_whole else None)
        keeps = torch.cat([torch.arange(r) < k for r, k in zip(ranks, kept, strict=True)])
        keeps = keeps.to(self.A.device)
        cut = self.A[~keeps], self.B[:, ~keeps]
        self.A, self.B, self.variances = self.A[keeps], self.B[:, keeps].contiguous(), self.variances[keeps]
        self.ranks = self.ranks.new_tensor(kept)
        return cut
