"""Gates of adapters that open for the samples of their own task, and stay shut for those of older ones (GainLoRA).

    g(p) = f(G_3 s(G_2 s(G_1 p))),   f(b) = |2 sigmoid(b) - 1|,   s = SiLU

A gate of the form "cosine" has 4 cos(G_3, s(G_2 s(G_1 p))) inside f instead, so it is at most f(4) = 0.96.

f is 0 at 0 and below 1. So a gate whose last row G_3 is orthogonal to what that row reads of old samples is shut for
all of them. It stays shut while it is trained if every update of a matrix is orthogonal to what this matrix reads of
old samples; then also what the later ones read of them stays as it was.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.memory.subspace import Subspace

__all__ = ["FORMS", "Gate"]

FORMS = ("product", "cosine")
"""What a gate computes with its last row: a product, or four times a cosine."""


class Gate(nn.Module):
    """One number from 0 to below 1 for each sample.

    Args:
        width: d, the width of the vectors that stand for samples.
        hidden: h, the rows of G_1; G_2 has d rows again.
        form: one of `FORMS`.

    Attributes:
        matrices: G_1 (h, d), G_2 (d, h), G_3 (1, d).
    """

    def __init__(self, width: int, hidden: int, form: str = "product") -> None:
        super().__init__()
        self.form = form
        shapes = ((hidden, width), (width, hidden), (1, width))
        self.matrices = nn.ParameterList(nn.Parameter(torch.zeros(shape), requires_grad=False) for shape in shapes)

    @torch.no_grad()
    def start(self, before: "Gate | None", spaces: Sequence[Subspace], draws: torch.Generator) -> None:
        """Draw the matrices; after another gate, G_1 and G_2 are its own, and G_3 ignores what old samples give.

        Args:
            before: the gate of the task before; None for the first one.
            spaces: by matrix, what it reads of old samples.
            draws: draws on the CPU.
        """
        for k, matrix in enumerate(self.matrices):
            drawn = torch.randn(matrix.shape, generator=draws) * (2 if k < 2 else 1) ** 0.5 / matrix.shape[1] ** 0.5
            matrix.copy_(before.matrices[k] if before is not None and k < 2 else drawn)
        last = self.matrices[2]
        last.copy_(spaces[2].outside(last.T).T)

    def inputs(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each matrix reads of samples p (n, d): (n, d), (n, h) and (n, d)."""
        first = F.silu(F.linear(p, self.matrices[0]))
        return p, first, F.silu(F.linear(first, self.matrices[1]))

    def forward(self, p: Tensor) -> Tensor:
        """(n,) the gate of samples p (n, d)."""
        x, row = self.inputs(p)[2], self.matrices[2]
        b = 4 * F.cosine_similarity(x, row) if self.form == "cosine" else F.linear(x, row)[:, 0]
        return (2 * torch.sigmoid(b) - 1).abs()

    def projections(self, spaces: Sequence[Subspace]) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """By matrix, the projection of its updates on those that change nothing of old samples."""
        return [(matrix, _ignoring(space)) for matrix, space in zip(self.matrices, spaces, strict=True)]


def _ignoring(space: Subspace) -> Callable[[Tensor], Tensor]:
    return lambda update: space.outside(update.T).T
