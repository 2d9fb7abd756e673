"""Random non-linear projections of features, h = relu(f W), and the ridge regression that is solved on them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.memory.resizable import Resizable

__all__ = ["NOT_IN_THEM", "RIDGES", "RandomProjections", "best_ridge", "check_left", "ridge_solution"]

RIDGES = tuple(10.0**power for power in range(-8, 9))
NOT_IN_THEM = "these are not samples that were learned as these classes: more would be taken than is there"
"""What is said of samples that are taken out of sums in which they are not."""
ROUNDING = 0.01
"""How far projections that are computed again may be from those that were added, as a share."""


class RandomProjections(Resizable):
    """A module that projects features at random. The projections are not stored, but drawn again from the seed.

    Attributes:
        projection: W (d, M) float64.
        check: (M,) the mean of each column of W, which is stored. It tells on loading whether W is the same.
    """

    projection: Tensor
    check: Tensor

    def draw_projections(self, width: int, count: int, generator: torch.Generator, *, least: int = 0) -> None:
        """Draw W.

        Args:
            width: d, the number of features.
            count: M, the number of projections.
            generator: draws them.
            least: the smallest number that is allowed.

        Raises:
            ValueError: there are fewer.
        """
        if count < least:
            raise ValueError(f"projections {count} is too small; 1000 to 10000 works well")
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


def best_ridge(h: Tensor, y: Tensor, h_held: Tensor, y_held: Tensor) -> float:
    """Return the lambda of RIDGES whose solution has the smallest squared error on held-out images.

    Args:
        h: (n, M), the projected features of the other images.
        y: (n, c), their one-hot targets.
        h_held: (m, M), the projected features of the held-out images.
        y_held: (m, c), their one-hot targets.
    """
    # h_held (h^T h + l)^-1 h^T y = h_held h^T (h h^T + l)^-1 y: the smaller matrix is decomposed once for every l.
    if len(h) > h.shape[1]:
        K, left, right = h.T @ h, h_held, h.T @ y
    else:
        K, left, right = h @ h.T, h_held @ h.T, y
    e, V = torch.linalg.eigh(K)
    left, right, e = left @ V, V.T @ right, e.clamp_min(0)
    errors = [float(((left / (e + ridge)) @ right - y_held).square().mean()) for ridge in RIDGES]
    return RIDGES[errors.index(min(errors))]


def check_left(before: Tensor, after: Tensor) -> None:
    """Make sure that what is left of sums of projections is a sum of projections, which are not negative.

    Args:
        before: (M, c), the sums before something was taken out.
        after: (M, c), the sums after it.

    Raises:
        ValueError: something was taken out that was not in them.
    """
    if (after < -ROUNDING * before.amax(0)).any():
        raise ValueError(NOT_IN_THEM)
