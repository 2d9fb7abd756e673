"""Pairs: updates of a weight that are kept as two thin factors, and their decompositions, which never need the update.

Everything is computed in float64, by the factors alone: an update (d_out, d_in) of rank r costs O((d_out + d_in) r^2).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Pair",
    "Spectrum",
    "compact",
    "low_rank",
    "rank_of_energy",
    "spectrum",
    "spectrum_of",
    "tolerance",
    "truncated",
    "truncated_for",
    "weighted_sum",
]


class Pair(NamedTuple):
    """The change B A of a weight.

    Attributes:
        A: (rank, d_in).
        B: (d_out, rank).
    """

    A: Tensor
    B: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in), the shape of the weight."""
        return len(self.B), self.A.shape[1]

    def delta(self) -> Tensor:
        """Return B A, (d_out, d_in) in float64."""
        return self.B.double() @ self.A.double()


class Spectrum(NamedTuple):
    """The singular values of a matrix that are not zero, largest first, with their vectors: M = U diag(S) V^T.

    Attributes:
        U: (d_out, rank), orthonormal columns.
        S: (rank,), above 0.
        V: (d_in, rank), orthonormal columns.
    """

    U: Tensor
    S: Tensor
    V: Tensor


def tolerance(*tensors: Tensor) -> float:
    """Return the share of the largest singular value below which a singular value counts as zero.

    That is the usual max(shape) x eps. Numbers of 16 bits count as float32, because products of them are exact there.

    Args:
        tensors: the factors, as they are stored; at least one.
    """
    eps = max(torch.finfo(t.dtype if t.dtype == torch.float64 else torch.float32).eps for t in tensors)
    return eps * max(max(t.shape) for t in tensors)


def spectrum_of(matrix: Tensor, share: float, largest: float = 0.0) -> Spectrum:
    """Decompose a matrix, and leave out what belongs to singular values that count as zero.

    Args:
        matrix: (m, n) in float64; it may have no rows or columns.
        share: a singular value counts if it is above this share of the largest one.
        largest: the largest singular value of what the matrix was computed from, if that is larger. Where that has
            cancelled out, only rounding is left, and none of it counts.
    """
    if not matrix.numel():
        return Spectrum(matrix.new_zeros(len(matrix), 0), matrix.new_zeros(0), matrix.new_zeros(matrix.shape[1], 0))
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((S > share * S[0].clamp(min=largest)).sum())
    return Spectrum(U[:, :rank], S[:rank], Vh[:rank].T)


def spectrum(pair: Pair, share: float, largest: float = 0.0) -> Spectrum:
    """Decompose the update of a pair, by decompositions of its factors.

    Args:
        pair: the pair.
        share: as for `spectrum_of`.
        largest: as for `spectrum_of`.

    Raises:
        ValueError: a factor has numbers that are not finite.
    """
    _check_finite(pair)
    Q_B, R_B = torch.linalg.qr(pair.B.double())
    Q_A, R_A = torch.linalg.qr(pair.A.double().T)
    inner = spectrum_of(R_B @ R_A.T, share, largest)
    return Spectrum(Q_B @ inner.U, inner.S, Q_A @ inner.V)


def truncated(pair: Pair, rank: int, largest: float = 0.0) -> tuple[Pair, float]:
    """Return the nearest pair of at most this rank, and the share of the squared norm that it keeps (1.0 for zero).

    Args:
        pair: the pair.
        rank: the largest rank; at least 1.
        largest: as for `spectrum_of`.

    Raises:
        ValueError: the rank is below 1, or a factor has numbers that are not finite.
    """
    if rank < 1:
        raise ValueError(f"rank {rank} is too small; an update keeps a rank of at least 1")
    U, S, V = spectrum(pair, tolerance(pair.A.double()), largest)
    energy = S.square()
    kept = float(energy[:rank].sum() / energy.sum()) if len(S) else 1.0
    return Pair(V[:, :rank].T, U[:, :rank] * S[:rank]), kept


def truncated_for(pair: Pair, rank: int, moment: Tensor) -> tuple[Pair, float]:
    """Return the pair of at most this rank whose outputs are nearest on given inputs, and the share that it keeps.

    With G the second moment of the inputs it minimises |(B A - B' A') G^(1/2)|, whose square is the mean of
    |B A x - B' A' x|^2 over the inputs x. If U are the strongest left singular vectors of B A G^(1/2), the nearest
    product is U U^T B A: a projection of the outputs, for which G^(1/2) need not have an inverse. U comes from the
    small matrix R_B (A G A^T) R_B^T, for B = Q_B R_B. So directions below about 1e-7 of the strongest count as zero.

    Args:
        pair: the pair.
        rank: the largest rank; at least 1. A direction in which these inputs have no output is left out in any case.
        moment: G (d_in, d_in), the sum or the mean of x x^T over the layer's inputs; its scale does not matter.

    Returns:
        The pair in float64, and the share of the squared norm of the outputs on these inputs that it keeps, which is
        1.0 if there are none. With G = I both are those of `truncated`.

    Raises:
        ValueError: the rank is below 1, a factor has numbers that are not finite, or the moment has another shape, is
            not finite, not symmetric, or has a negative value on its diagonal.
    """
    if rank < 1:
        raise ValueError(f"rank {rank} is too small; an update keeps a rank of at least 1")
    _check_finite(pair)
    G, A = _checked_moment(moment, pair.shape[1]), pair.A.double()
    Q, R = torch.linalg.qr(pair.B.double())
    core = R @ (A @ G @ A.T) @ R.T
    energy, U = torch.linalg.eigh((core + core.T) / 2)
    energy, U = energy.flip(0), U.flip(1)
    counted = int((energy > tolerance(A, R) * energy[:1].clamp_min(0)).sum())
    kept = float(energy[: min(rank, counted)].sum() / energy[:counted].sum()) if counted else 1.0
    U = U[:, : min(rank, counted)]
    return Pair(U.T @ R @ A, Q @ U), kept


def _checked_moment(moment: Tensor, width: int) -> Tensor:
    if moment.shape != (width, width):
        raise ValueError(
            f"the second moment has the shape {tuple(moment.shape)}; "
            f"a layer with {width} inputs needs ({width}, {width})"
        )
    G = moment.double()
    if not G.isfinite().all():
        raise ValueError("the second moment has numbers that are not finite; collect it anew")
    if float((G - G.T).abs().max()) > 1e-5 * float(G.abs().max()) or bool((G.diagonal() < 0).any()):
        raise ValueError("the second moment must be symmetric with a diagonal of at least 0, as a sum of x x^T is")
    return G


def rank_of_energy(pair: Pair, energy: float) -> int:
    """Return the smallest rank whose truncation keeps at least this share of the squared norm; 1 for an update of zero.

    Args:
        pair: the pair.
        energy: the share, above 0 and at most 1. 1 keeps the numerical rank.

    Raises:
        ValueError: the share is out of its range.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy {energy} must be above 0 and at most 1, such as 0.99")
    squares = spectrum(pair, tolerance(pair.A.double())).S.square()
    if not len(squares) or energy == 1:
        return max(1, len(squares))
    return 1 + int((squares.cumsum(0) < energy * squares.sum()).sum())


def compact(pair: Pair, largest: float = 0.0) -> Pair:
    """Return the same update in its numerical rank, which is at most the smaller width of the weight.

    Args:
        pair: the pair.
        largest: as for `spectrum_of`.
    """
    return truncated(pair, min(pair.shape), largest)[0]


def weighted_sum(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """Return the pair of the sum of weighted updates, which is exact: A's are stacked, B's stand side by side.

    It has the rank of all together; `compact` finds that of the sum.

    Args:
        pairs: the updates of one weight; at least one.
        weights: one factor for each.
    """
    A = torch.cat([pair.A.double() for pair in pairs])
    return Pair(A, torch.cat([w * pair.B.double() for w, pair in zip(weights, pairs, strict=True)], 1))


def low_rank(change: Tensor, weight: Tensor, merges: int = 1) -> Pair:
    """Factorise the change of a float32 weight, in its numerical rank.

    Singular values above the rounding noise count. Each addition to the weight rounds its entries by up to eps / 2 of
    their size. After `merges` additions that is a random matrix whose norm is about eps / sqrt 12 x rms x
    (sqrt m + sqrt n) x sqrt(merges).

    Args:
        change: (m, n).
        weight: (m, n).
        merges: how many times a change was added to the weight.
    """
    D = change.double()
    rms = weight.double().square().mean().sqrt()
    eps = torch.finfo(torch.float32).eps
    noise = eps * rms * (D.shape[0] ** 0.5 + D.shape[1] ** 0.5) * merges**0.5
    _, s, Vh = torch.linalg.svd(D, full_matrices=False)
    A = Vh[: int((s > noise).sum())]
    return Pair(A.float().contiguous(), (D @ A.T).float().contiguous())  # rows of zeros stay zero


def _check_finite(pair: Pair) -> None:
    if not (pair.A.isfinite().all() and pair.B.isfinite().all()):
        raise ValueError("the factors have numbers that are not finite; train the adapter again")
