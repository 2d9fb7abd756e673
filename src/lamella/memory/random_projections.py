"""Random non-linear projections of features, h = relu(f W), and the ridge regression that is solved on them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.memory.resizable import Resizable

__all__ = ["RandomProjections", "ridge_solution"]


class RandomProjections(Resizable):
    """A module that projects features at random. The projections are not stored, but drawn again from the seed.

    Attributes:
        projection: W (d, M) float64.
        check: (M,) the mean of each column of W, which is stored. It tells on loading whether W is the same.
    """

    projection: Tensor
    check: Tensor

    def draw_projections(self, width: int, count: int, generator: torch.Generator) -> None:
        """Draw W.

        Args:
            width: d, the number of features.
            count: M, the number of projections.
            generator: draws them.
        """
        W = torch.randn(width, count, dtype=torch.float64, generator=generator)
        self.register_buffer("projection", W, persistent=False)
        self.register_buffer("check", W.mean(0))

    def projected(self, features: Tensor) -> Tensor:
        """Return relu(f W), (n, M) float64, for features f (n, d). Autocast leaves products in float64 alone."""
        return F.relu(features.double() @ self.projection)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        drawn = self.check.clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not torch.allclose(drawn, self.check):
            args[-1].append("its random projections are not those of this seed: use the seed that it learned with")


def ridge_solution(scatter: Tensor, targets: Tensor, level: float | Tensor) -> Tensor:
    """Return (scatter + level I)^-1 targets, (M, c).

    Args:
        scatter: (M, M), positive semi-definite.
        targets: (M, c).
        level: what is added to the diagonal; above 0.
    """
    added = level * torch.eye(len(scatter)).to(scatter)
    return torch.cholesky_solve(targets, torch.linalg.cholesky(scatter + added)).contiguous()
