"""Rules that merge updates by their singular vectors, computed in the small space that the updates span.

These rules were written for weights that were trained as a whole. An update of low rank has most singular values equal
to zero, and their vectors are arbitrary. A rule that raises all singular values to their mean, or makes all vectors
orthonormal, then fills the weight with directions that no task has learned. So a layer's updates are first written in
orthonormal bases of all their columns and of all their rows, D_i = Q_B C_i Q_A^T, which loses nothing. The rule sees
the small matrices C_i, and of them only what belongs to singular values above zero.

    symbol      here
    Q_A, Q_B    Core.rows (d_in, m), Core.columns (d_out, n)
    C_i         Core.inner[i] (n, m)
    polar(M)    P Q^T of the singular value decomposition M = P S Q^T, over the singular values that are not zero
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lamella.adapters.pairs import Pair, Spectrum, spectrum, spectrum_of, tolerance

__all__ = ["Core", "core_of", "iso_c", "iso_cts", "opcm", "tsv"]


class Core(NamedTuple):
    """The updates of one weight in orthonormal bases of what they span.

    Attributes:
        rows: (d_in, m), a basis of all rows of all updates.
        columns: (d_out, n), a basis of all their columns.
        inner: the updates in these bases, (n, m) each.
        share: singular values below this share of the largest one count as zero.
        largest: the largest singular value of any of the updates; what is below its share is rounding.
    """

    rows: Tensor
    columns: Tensor
    inner: list[Tensor]
    share: float
    largest: float

    def pair(self, inner: Tensor) -> Pair:
        """Return the pair of a matrix (n, m) in these bases, in its numerical rank."""
        U, S, V = self.spectrum(inner)
        return Pair((self.rows @ V).T, self.columns @ (U * S))

    def spectrum(self, inner: Tensor) -> Spectrum:
        """Decompose a matrix (n, m) in these bases; what is only rounding beside the updates does not count."""
        return spectrum_of(inner, self.share, self.largest)


def core_of(pairs: Sequence[Pair]) -> Core:
    """Write updates of one weight in the bases of what they span.

    Args:
        pairs: the updates; at least one.
    """
    share = max(tolerance(*pair) for pair in pairs)
    # Singular vectors instead of the factors, so that a weak update counts as much as a strong one in the bases.
    spectra = [spectrum(pair, share) for pair in pairs]
    columns = spectrum_of(torch.cat([s.U for s in spectra], 1), share).U
    rows = spectrum_of(torch.cat([s.V for s in spectra], 1), share).U
    largest = max((float(s.S[0]) for s in spectra if len(s.S)), default=0.0)
    return Core(rows, columns, [(columns.T @ s.U * s.S) @ (rows.T @ s.V).T for s in spectra], share, largest)


def polar(matrix: Tensor, share: float) -> Tensor:
    """Return P Q^T of a matrix P S Q^T: orthonormal columns, where the matrix has independent ones."""
    P, _, Q = spectrum_of(matrix, share)
    return P @ Q.T


def iso_c(core: Core) -> Pair:
    """Return the sum of the updates with all its singular values set to their mean.

    Iso-C: Marczak et al., ICML 2025, arXiv 2502.04959.
    """
    U, S, V = core.spectrum(_sum(core))
    return core.pair(S.mean() * U @ V.T if len(S) else _sum(core))


def iso_cts(core: Core, common: float) -> Pair:
    """Return directions that the updates have in common and directions of single ones, all equally strong.

    Iso-CTS of the same paper. Of the min(n, m) directions, about the share `common` are the first of the sum. The
    others are the first of what each update has besides, as many from each.

    Args:
        core: the updates.
        common: the share of common directions, from 0 to 1.
    """
    tasks, room = len(core.inner), min(len(core.columns.T), len(core.rows.T))
    each = round((room - int(common * room)) / tasks)
    U, S, V = (x[..., : max(0, room - each * tasks)] for x in core.spectrum(_sum(core)))
    parts = [(U, S, V)]
    for C in core.inner:
        own = core.spectrum(C - U @ (U.T @ C))
        parts.append((own.U[:, :each], own.S[:each], own.V[:, :each]))
    left, values, right = (torch.cat(found, -1) for found in zip(*parts, strict=True))
    mean = values.mean() if len(values) else 0.0
    return core.pair(mean * polar(left, core.share) @ polar(right, core.share).T)


def tsv(core: Core) -> Pair:
    """Return the sum of the updates after their singular vectors were made orthogonal to those of the others.

    TSV-M: Gargiulo et al., CVPR 2025, arXiv 2412.00081. Every update keeps all its directions.
    """
    spectra = [spectrum_of(C, core.share) for C in core.inner]
    left = polar(torch.cat([s.U for s in spectra], 1), core.share)
    right = polar(torch.cat([s.V for s in spectra], 1), core.share)
    return core.pair(left * torch.cat([s.S for s in spectra]) @ right.T)


def opcm(cores: Sequence[Core], strong: float) -> list[Pair]:
    """Merge one update after the other; of a new one, the part within the strong directions of the merge is left out.

    OPCM: Tang et al., NeurIPS 2025, arXiv 2501.09522. A step needs the running merge and the new update alone. After
    each step all layers are scaled together, so that their norm is the mean of the norms of the updates so far.

    Args:
        cores: the updates of each layer, in the order of learning.
        strong: the strong directions are the first whose singular values sum up to at most this share of the total;
            from 0 to 1. At 1 all are strong; the authors' code then takes none.
    """
    running = [core.inner[0] for core in cores]
    norms = [_norm(running)]
    factor = 1.0
    for t in range(1, len(cores[0].inner)):
        norms.append(_norm([core.inner[t] for core in cores]))
        parts = [_without_strong(M, core.inner[t], strong, core.share) for M, core in zip(running, cores, strict=True)]
        sums = [factor * M + part for M, part in zip(running, parts, strict=True)]
        wanted = sum(norms) / len(norms)
        factor = _norm(sums) / wanted if wanted and _norm(sums) else 1.0
        running = [total / factor for total in sums]
    return [core.pair(M) for core, M in zip(cores, running, strict=True)]


def _without_strong(running: Tensor, new: Tensor, strong: float, share: float) -> Tensor:
    """Return the new update without its part in the strong directions of the merge, and without its diagonal there."""
    U, S, V = spectrum_of(running, share)
    if not len(S):
        return new
    inside = U.T @ new @ V
    sums = S.cumsum(0)
    leading = int((sums / sums[-1] <= strong).sum())
    removed = inside.diagonal().diag()
    removed[:leading, :leading] = inside[:leading, :leading]
    return new - U @ removed @ V.T


def _sum(core: Core) -> Tensor:
    return torch.stack(core.inner).sum(0)


def _norm(matrices: Sequence[Tensor]) -> float:
    return float(torch.stack([M.square().sum() for M in matrices]).sum().sqrt())
