"""The second moment of a layer's old inputs, and what LoDA decides by it.

LoDA (arXiv 2603.00191) does not keep new updates out of all that old inputs use. It looks for directions that have much
energy in the inputs of the new task for the energy that they have in old ones, and scales down what an update does to
old inputs after training, by a closed form.
"""

import torch
from torch import Tensor

from lamella.memory.resizable import Resizable
from lamella.memory.subspace import orthonormal

__all__ = ["OldMoment", "ratio_directions", "shrinkage"]


class OldMoment(Resizable):
    """The sum of the second moments of all old tasks, in float64, since it is inverted.

    Args:
        width: d, the number of inputs.

    Attributes:
        moment: (d, d).
    """

    for_training = True
    moment: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("moment", torch.zeros(width, width, dtype=torch.float64))

    def add(self, moment: Tensor) -> None:
        """Add the second moment (d, d) of a new task."""
        self.moment += moment.to(self.moment)


def ratio_directions(new: Tensor, old: Tensor, rank: int) -> Tensor:
    """Return the directions with the largest ratios a^T M a / a^T N a, made orthonormal: (d, k), k = min(rank, d).

    With N = L L^T they are L^-T v for the leading singular vectors v of L^-1 M L^-T. A multiple of the identity is
    added to N until it can be factored: 1e-12, then ten times as much each time. So directions that old inputs do not
    use at all have by far the largest ratios.

    Args:
        new: M (d, d), the second moment of new inputs.
        old: N (d, d), that of old ones.
        rank: how many directions are wanted.
    """
    M, L = new.double(), _root(old.double())
    half = torch.linalg.solve_triangular(L, M, upper=False)  # L^-1 M
    whitened = torch.linalg.solve_triangular(L, half.T, upper=False)  # L^-1 M L^-T
    V = torch.linalg.svd(whitened)[0][:, :rank]
    return orthonormal(torch.linalg.solve_triangular(L.T, V, upper=True))


def _root(moment: Tensor) -> Tensor:
    """Return L, lower triangular, with L L^T = moment (d, d) + jitter; see `ratio_directions`."""
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    jitter = 1e-12
    while True:
        L, failed = torch.linalg.cholesky_ex(moment + jitter * eye)
        if not int(failed):
            return L
        jitter *= 10


def shrinkage(A: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return eta (r,), by how much the part of an update that a row of A reads is scaled down, from 0 to 1.

    eta_i = a_i^T N a_i / (a_i^T N a_i + 3 a_i^T M a_i): 0 for a row that reads nothing of old inputs. It is 0 too for a
    row that reads nothing at all.

    Args:
        A: (r, d), with the rows a_i.
        old: N (d, d), the second moment of old inputs.
        new: M (d, d), that of new ones.

    Returns:
        In the precision of A.
    """
    rows = A.double()
    of_old, of_new = (((rows @ moment.to(rows)) * rows).sum(1).clamp_min(0) for moment in (old, new))
    total = of_old + 3 * of_new
    return torch.where(total > 0, of_old / total, 0.0).to(A.dtype)
