"""Subspaces of layer inputs: the directions that old tasks use, and those that are free.

Gradient projection memory (GPM; Saha, Garg & Roy, ICLR 2021, arXiv 2103.09762) keeps an orthonormal basis of the
directions that carry most of the energy of old inputs. DualGPM (Liang & Li, CVPR 2023/2024, arXiv 2404.00228) keeps the
complement instead once that is smaller, so that at most half as many vectors as inputs are stored.
"""

import torch
from torch import Tensor, nn

from lamella.common.randomness import generator
from lamella.memory.resizable import Resizable

__all__ = [
    "FINE_ROUNDING",
    "SecondMoment",
    "Subspace",
    "count_by_share",
    "count_by_trade_off",
    "leading",
    "leading_singular",
    "left_singular",
    "numerical_rank",
    "orthonormal",
    "orthonormal_start",
    "project_out",
    "shares",
]

WIDE = 1024
"""The width from which on it pays to look whether a matrix has a low rank."""
FINE_ROUNDING = 1e-12
"""A smaller share of the energy is due to rounding: inputs in float32 have errors of about 1e-7 of their size."""


class SecondMoment(nn.Module):
    """The mean of x x^T over tokens, stored as sum and count so that parts can be added exactly.

    Call it with inputs `(..., d)` and optionally with a mask `(...)`, which is false for padding. The mean is not
    subtracted.

    Args:
        width: d, the number of inputs.
        dtype: the precision of the sums; float64 where the moment is inverted.
    """

    adds = True  # its buffers are sums over samples
    total: Tensor
    count: Tensor

    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(width, width, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, x: Tensor, mask: Tensor | None = None) -> None:
        tokens = x[mask] if mask is not None else x
        tokens = tokens.reshape(-1, tokens.shape[-1]).to(self.total.dtype)
        if self.total.device != tokens.device:
            self.to(tokens.device)
        self.total.addmm_(tokens.T, tokens)
        self.count += len(tokens)

    def add(self, other: "SecondMoment") -> None:
        """Add the observations of another part."""
        self.total += other.total.to(self.total.device)
        self.count += other.count.to(self.count.device)

    @property
    def mean(self) -> Tensor:
        """The second moment (d, d), symmetric and positive semi-definite.

        Raises:
            ValueError: nothing was observed.
        """
        if not int(self.count):
            raise ValueError("the second moment has seen no input; run a scan over some samples first")
        return self.total / self.count


def leading(moment: Tensor, rank: int) -> Tensor:
    """Return the left singular vectors of the largest singular values.

    Args:
        moment: (d, d), symmetric or not.
        rank: how many vectors, at most d.

    Returns:
        (d, rank), orthonormal columns, largest first.
    """
    return left_singular(moment)[0][:, :rank]


def left_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left singular vectors (d, d) and singular values (d,) of a square matrix, largest first.

    They are computed from the eigenvectors of M M^T in float64. That is several times faster than a singular value
    decomposition and, in this precision, as exact as float32 inputs allow.
    """
    M = matrix.double()
    values, vectors = torch.linalg.eigh(M @ M.T)
    return vectors.flip(1).to(matrix.dtype), values.flip(0).clamp_min(0).sqrt().to(matrix.dtype)


def leading_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As `left_singular`, but of a wide matrix of low rank only the first quarter, behind which all values are zero.

    The second moment of a few tokens has a low rank. Then a product with random numbers has the same range, and the
    vectors are found in that (Halko, Martinsson & Tropp, SIAM Review 2011, arXiv 0909.4061), several times faster.

    Args:
        matrix: (d, d).

    Returns:
        (d, k) orthonormal columns and (k,) values, largest first. k is d, or d / 4 if d is at least WIDE and the other
        values are zero to rounding.
    """
    if len(matrix) < WIDE:
        return left_singular(matrix)
    M, k = matrix.double(), len(matrix) // 4
    drawn = torch.randn(len(M), k, generator=generator(0, "range of a matrix"), dtype=M.dtype).to(M.device)
    basis, _ = torch.linalg.qr(M @ drawn)
    inside = basis.T @ M
    if M.square().sum() - inside.square().sum() > FINE_ROUNDING * M.square().sum():
        return left_singular(matrix)
    values, vectors = torch.linalg.eigh(inside @ inside.T)
    return (basis @ vectors.flip(1)).to(matrix.dtype), values.flip(0).clamp_min(0).sqrt().to(matrix.dtype)


def shares(values: Tensor) -> Tensor:
    """Return the share of each value (d,) in their sum; all are 0 if the sum is 0.

    Args:
        values: (d,) energies, such as the eigenvalues of a second moment; rounding below 0 counts as 0.
    """
    energies = values.double().clamp_min(0)
    return energies / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)


def count_by_share(values: Tensor, share: float) -> int:
    """Return how many leading directions have together at least this share of the energy.

    >>> count_by_share(torch.tensor([6.0, 3.0, 1.0, 0.0]), 0.9)
    2

    Args:
        values: (d,) energies, largest first.
        share: above 0, at most 1.
    """
    reached = shares(values).cumsum(0) >= share - 1e-12  # the sum of all shares may be 1 - 1e-16
    return int(reached.long().argmax()) + 1 if bool(reached.any()) else len(values)


def count_by_trade_off(values: Tensor, tasks: int, room: float) -> int:
    """Return how many leading directions to protect, where protection and room for later tasks are weighed.

    The number k minimises tasks x (1 - share of the first k) - room x (d - k) / d: the energy of old inputs that is not
    protected, which counts more the more tasks have been learned, against the share of directions that stay free
    (SplitLoRA: Qiu et al., ICLR 2026, arXiv 2505.22370). As energies fall, the k-th direction is protected if its share
    is above room / (d x tasks).

    >>> count_by_trade_off(torch.tensor([7.0, 2.0, 1.0, 0.0]), tasks=1, room=0.6)
    2

    Args:
        values: (d,) energies, largest first.
        tasks: the number of tasks learned so far, at least 1.
        room: the weight of free directions; above 0.

    Returns:
        k, at least 1.
    """
    d = len(values)
    k = torch.arange(1, d + 1, dtype=torch.float64, device=values.device)
    return int((tasks * (1 - shares(values).cumsum(0)) - room * (d - k) / d).argmin()) + 1


def numerical_rank(values: Tensor, reference: float | Tensor, tolerance: float = 1e-5) -> int:
    """Count the singular values that are above rounding noise.

    Args:
        values: singular values, largest first.
        reference: the norm of the matrix before any subtraction.
        tolerance: values up to this share of `reference` are noise.
    """
    return int((values > tolerance * reference).sum())


def project_out(x: Tensor, basis: Tensor) -> Tensor:
    """Subtract from the columns of x (d, n) their projections on the orthonormal columns of `basis` (d, k).

    >>> project_out(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0], [0.0]])).squeeze(1)
    tensor([0., 4.])
    """
    return x - basis @ (basis.T @ x)


class Subspace(Resizable):
    """A growing subspace of R^d. Stored is its basis or that of its complement, whichever is smaller.

    Args:
        width: d.

    Attributes:
        vectors: (d, k), orthonormal columns; k is at most d / 2.
        complement: whether `vectors` span the complement of the subspace.
    """

    resizable = ("vectors",)
    for_training = True
    vectors: Tensor
    stores_complement: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(width, 0))
        self.register_buffer("stores_complement", torch.zeros((), dtype=torch.bool))

    @property
    def complement(self) -> bool:
        return bool(self.stores_complement)

    @property
    def width(self) -> int:
        return self.vectors.shape[0]

    @property
    def dimension(self) -> int:
        """The dimension of the subspace, 0..d."""
        stored = self.vectors.shape[1]
        return self.width - stored if self.complement else stored

    def inside(self, x: Tensor) -> Tensor:
        """Return the projection of the columns of x (d, n) on the subspace."""
        return project_out(x, self._stored(x)) if self.complement else self._onto_stored(x)

    def outside(self, x: Tensor) -> Tensor:
        """Return the part of the columns of x (d, n) that is orthogonal to the subspace."""
        return self._onto_stored(x) if self.complement else project_out(x, self._stored(x))

    def _stored(self, x: Tensor) -> Tensor:
        return self.vectors.to(x)

    def _onto_stored(self, x: Tensor) -> Tensor:
        return self._stored(x) @ (self._stored(x).T @ x)

    def extend(self, directions: Tensor) -> None:
        """Add the span of `directions` (d, n), which may be linearly dependent or already in the subspace.

        The stored basis is made orthonormal again each time, because its error would grow 40-fold in five tasks. Once
        the basis has more than d / 2 vectors, the complement is stored instead.
        """
        new = self._new(directions)
        if new.shape[1] == 0:
            return
        if self.complement:
            kept, _ = left_singular(_gram(project_out(self.vectors, new)))
            self.vectors = orthonormal(kept[:, : self.vectors.shape[1] - new.shape[1]])
            return
        basis = orthonormal(torch.cat([self.vectors, new], dim=1))
        if 2 * basis.shape[1] > self.width:
            rest, _ = left_singular(project_out(torch.eye(self.width, dtype=basis.dtype, device=basis.device), basis))
            self.vectors = orthonormal(rest[:, : self.width - basis.shape[1]])
            self.stores_complement = torch.ones_like(self.stores_complement)
        else:
            self.vectors = basis

    def _new(self, directions: Tensor) -> Tensor:
        """Return (d, k) orthonormal columns that span what `directions` add to the subspace."""
        directions = directions.double()
        if directions.shape[1] == 0:
            return directions.to(self.vectors)
        # If the rank is lower, a QR decomposition would add arbitrary directions; singular values show the rank.
        U, s, _ = torch.linalg.svd(self.outside(directions), full_matrices=False)
        rank = numerical_rank(s, float(torch.linalg.matrix_norm(directions, 2)))
        return U[:, :rank].to(self.vectors)


def _gram(columns: Tensor) -> Tensor:
    return columns @ columns.T


def orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns with the same span, (d, k) -> (d, k), computed in float64.

    The result is contiguous, as tensors from a file are: a product with the same numbers in another memory layout
    rounds differently.
    """
    if columns.shape[1] == 0:
        return columns
    return torch.linalg.qr(columns.double())[0].to(columns.dtype).contiguous()


def orthonormal_start(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return (count, e) unit rows in float64, orthogonal to each other and to all that older rows span.

    A row for which no direction is left is a random one.

    Args:
        old: (k, e) older rows, of any rank.
        count: how many new rows.
        generator: draws each row before what is not new in it is taken off.
    """
    _, sizes, directions = torch.linalg.svd(old.double(), full_matrices=False)
    basis = directions[: numerical_rank(sizes, sizes[:1].sum())].T
    rows: list[Tensor] = []
    for _ in range(count):
        drawn = torch.randn(old.shape[1], 1, generator=generator, dtype=torch.float64)
        free = project_out(project_out(drawn, basis), basis)  # twice, since once leaves rounding errors
        left = float(free.norm() / drawn.norm()) > 1e-6
        row = free if left else drawn
        rows.append(row / row.norm())
        basis = torch.cat([basis, rows[-1]], dim=1) if left else basis
    return torch.cat(rows, dim=1).T
