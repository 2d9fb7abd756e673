"""Covariances of classes kept as a few directions each, and the quadratic discriminant that they give.

A covariance S_c = sum_i e_i u_i u_i^T of a class is kept as its k largest directions and one number for the rest:

    R_c R_c^T + r_c I    with R_c = U_k diag(sqrt e_k), (d, k), and r_c = (trace S_c - sum e_k) / d

The trace is kept exactly. The form is that of LR-RGDA (its authors' code: raoxuan98-hash/lr_rgda_hopdc), which keeps
64 directions, adds a fixed multiple of I, and has one share for all classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lamella.memory.resizable import Resizable

__all__ = ["Curves", "LowRankCovariances", "Quadratic", "quadratic_of"]


class LowRankCovariances(Resizable):
    """R_c and r_c of each class, in the order of the statistics that they belong to.

    Args:
        width: d, the number of features.
        directions: k, how many directions of each class are kept; at least 1. More than d are d.

    Attributes:
        roots: (c, d, k) float32, R_c; columns of zeros where a class has fewer directions.
        rests: (c,) float32, r_c.
    """

    resizable = ("roots", "rests")

    roots: Tensor
    rests: Tensor

    def __init__(self, width: int, directions: int) -> None:
        super().__init__()
        self.register_buffer("roots", torch.zeros(0, width, min(directions, width)))
        self.register_buffer("rests", torch.zeros(0))

    def append(self, x: Tensor) -> None:
        """Add a class with the covariance of centred features x (n, d)."""
        self._put(len(self.rests), x.T / len(x) ** 0.5, 0.0)

    def add(self, i: int, count: int, x: Tensor, shift: Tensor) -> None:
        """Add more features to a class.

        Args:
            i: the row of the class.
            count: the number of features that the class has had so far.
            x: (n, d), the new features around their own mean.
            shift: (d,), their mean less the one so far.
        """
        self._join(i, count, x.T / len(x) ** 0.5, 0.0, len(x), shift)

    def merge(self, i: int, count: int, other: int, n: int, shift: Tensor) -> None:
        """Add all features of another class, whose row stays as it is.

        Args:
            i: the row of the class.
            count: the number of its features.
            other: the row of the other class.
            n: the number of the other's features.
            shift: (d,), the other's mean less its own.
        """
        self._join(i, count, self.roots[other].to(shift), float(self.rests[other]), n, shift)

    def _join(self, i: int, count: int, factor: Tensor, rest: float, n: int, shift: Tensor) -> None:
        """Join class i with n features of the covariance factor factor^T + rest I."""
        total = count + n
        own, between = count**0.5 * self.roots[i].to(factor), (count * n / total) ** 0.5 * shift[:, None]
        both = torch.cat([own, n**0.5 * factor, between], 1) / total**0.5
        self._put(i, both, (count * float(self.rests[i]) + n * rest) / total)

    def resemble(self, i: int, x: Tensor, share: float) -> None:
        """Make the covariance of class i a mixture of its own and of that of centred samples.

        Args:
            i: the row of the class.
            x: (m, d), the samples around their mean.
            share: the share of theirs; 0..1.
        """
        own = (1 - share) ** 0.5 * self.roots[i].to(x)
        self._put(i, torch.cat([(share / len(x)) ** 0.5 * x.T, own], 1), (1 - share) * float(self.rests[i]))

    def _put(self, i: int, factor: Tensor, rest: float) -> None:
        """Keep factor factor^T + rest I, with factor (d, m), as class i, which may be a new one."""
        root = _leading(factor, self.roots.shape[2])
        lost = (factor.square().sum() - root.square().sum()).clamp_min(0) / len(factor)
        row, number = root.to(self.roots)[None], (rest + lost).to(self.rests)[None]
        self.roots = torch.cat([self.roots[:i], row, self.roots[i + 1 :]])
        self.rests = torch.cat([self.rests[:i], number, self.rests[i + 1 :]])

    def move(self, map_: Tensor) -> None:
        """Move with features f -> f map_ (d, d): R <- map_^T R is exact, r I keeps its trace and its form."""
        self.rests = (self.rests * map_.square().sum() / len(map_)).to(self.rests)
        self.roots = (map_.T @ self.roots.to(map_)).to(self.roots)

    def keep(self, rows: Tensor) -> None:
        """Keep the classes in these rows alone."""
        self.roots, self.rests = self.roots[rows], self.rests[rows]

    def covariance(self, i: int) -> Tensor:
        """Return R R^T + r I (d, d) of one class, in float64."""
        root = self.roots[i].double()
        return root @ root.T + self.rests[i].double() * torch.eye(len(root), dtype=root.dtype, device=root.device)

    def scatter(self, counts: Tensor) -> Tensor:
        """Return (d, d), the sum of counts (c,) x R R^T + r I, in float64."""
        roots, rests = self.roots.double(), self.rests.double()
        total = torch.einsum("c,cdk,cek->de", counts.double(), roots, roots)
        return total + (counts * rests).sum() * torch.eye(len(total), dtype=total.dtype, device=total.device)


def _leading(factor: Tensor, count: int) -> Tensor:
    """Return R (d, count) whose R R^T has the largest directions of factor factor^T, with factor (d, m)."""
    wide = factor.shape[1] > len(factor)
    e, U = torch.linalg.eigh(factor @ factor.T if wide else factor.T @ factor)
    e, U = e[-count:], U[:, -count:]
    root = U * e.clamp_min(0).sqrt() if wide else factor @ U
    return torch.cat([root, root.new_zeros(len(factor), count - root.shape[1])], 1)


class Curves(nn.Module):
    """What the scores of a quadratic discriminant have beside a linear layer: squares of a few products.

    Args:
        rotation: (d, d), V: the axes of the shared covariance are its rows.
        widths: (c, d), 1 / variances of each class along these axes.
        directions: (c, k, d).
        offsets: (c, k).
    """

    rotation: Tensor
    widths: Tensor
    directions: Tensor
    offsets: Tensor

    def __init__(self, rotation: Tensor, widths: Tensor, directions: Tensor, offsets: Tensor) -> None:
        super().__init__()
        tensors = {"rotation": rotation, "widths": widths, "directions": directions, "offsets": offsets}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, f: Tensor) -> Tensor:
        """(n, d) -> (n, c): half of |directions f - offsets|^2 less half of widths x (rotation f)^2."""
        along = (f @ self.directions.flatten(0, 1).T - self.offsets.flatten()).square()
        axes = (f @ self.rotation.T).square() @ self.widths.T
        return (along.unflatten(1, self.offsets.shape).sum(2) - axes) / 2


class Quadratic(NamedTuple):
    """A quadratic discriminant: the scores of features f are weight f + bias + curves(f).

    Attributes:
        weight: (c, d).
        bias: (c,).
        curves: the quadratic part.
    """

    weight: Tensor
    bias: Tensor
    curves: Curves

    def __call__(self, f: Tensor) -> Tensor:
        return f @ self.weight.T + self.bias + self.curves(f)


def quadratic_of(means: Tensor, shared: Tensor, shares: Tensor, own: LowRankCovariances) -> Quadratic:
    """Return the log-likelihoods under N(m, (1 - a) S + a (R R^T + r I)) of each class, up to a constant.

    With S = V^T diag(s) V the part without R is diagonal in the axes V, with the variances v = (1 - a) s + a r. The
    rest is Woodbury's identity with U = sqrt(a) V R and D = diag(v), which takes k x k matrices alone:

        (D + U U^T)^-1 = D^-1 - D^-1 U M^-1 U^T D^-1    log det = log det D + log det M    with M = I + U^T D^-1 U

    Args:
        means: (c, d) float64.
        shared: S, (d, d) float64, positive definite.
        shares: a, (c,) float64; from 0 to below 1.
        own: R and r.
    """
    s, axes = torch.linalg.eigh(shared)
    V = axes.T
    variances = (1 - shares)[:, None] * s + (shares * own.rests.to(shares))[:, None]
    U = V @ (own.roots.to(means) * shares.sqrt()[:, None, None])
    DU = U / variances[:, :, None]
    identity = torch.eye(U.shape[2], dtype=U.dtype, device=U.device)
    L = torch.linalg.cholesky(identity + U.mT @ DU)
    directions = torch.linalg.solve_triangular(L, DU.mT, upper=False)  # (c, k, d), L^-1 U^T D^-1

    m = means @ V.T
    scaled = m / variances
    offsets = (directions @ m[:, :, None])[:, :, 0]
    volumes = variances.log().sum(1) + 2 * L.diagonal(dim1=1, dim2=2).log().sum(1)
    weight, bias = scaled @ V, -((scaled * m).sum(1) + volumes) / 2
    # The squares along the directions contain their own linear part, so the weight has none of it.
    return Quadratic(weight, bias, Curves(V, 1 / variances, directions @ V, offsets))
