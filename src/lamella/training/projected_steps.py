"""Projected steps: what the optimiser changes is projected, not the gradient that it is given.

An optimiser such as Adam divides each entry of a gradient by its own scale, so a projected gradient gives a step that
leaves the subspace. Here the whole step, with momentum and all, is a difference of weights, and that is projected.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["ProjectedSteps"]


class ProjectedSteps:
    """Replaces each step w -> w + u of an optimiser by w -> w + project(u), for some of its tensors.

    Its two members are `before_step` and `after_step` of a call of `fit`. Nothing is kept from step to step, so an
    interrupted call goes on with the same bits. Weight decay, as part of the step, is projected too.

    Args:
        projections: pairs of a trained tensor and a linear function of updates, which have the shape of the tensor.
    """

    def __init__(self, projections: Sequence[tuple[Tensor, Callable[[Tensor], Tensor]]]) -> None:
        self.projections = projections
        self._starts: list[Tensor] = []

    def before(self) -> None:
        """Remember the weights before the optimiser's step."""
        self._starts = [weight.detach().clone() for weight, _ in self.projections]

    @torch.no_grad()
    def after(self) -> None:
        """Project the optimiser's step."""
        for (weight, project), start in zip(self.projections, self._starts, strict=True):
            weight.copy_(start + project(weight - start))
        self._starts = []
