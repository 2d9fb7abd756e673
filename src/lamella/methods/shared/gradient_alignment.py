"""Gradient alignment: steps of one half of a batch's classes, at weights that the other half's gradient has moved.

It is part of LoDA, arXiv 2603.00191, and was written after a specification; the authors' code
(github.com/HHHLF/LoDA_ICML2026, commit 9943dc7) was read on 2026-11-30. The classes of a
batch are divided into two halves. The gradient of one half moves the weights a little, and there the other half takes a
step; so it is looked for what helps both, which is what the classes share.

    their code              here
    g1, g2                  halves: the classes of the batch, divided at random
    rho                     rho, the largest distance that a tensor is moved; the distance is rho u, u uniform in [0, 1]

    for (a, b) in ((1, 2), (2, 1)):
      g = gradient of the loss of half a;  w <- w - rho u g / |g|   for each tensor w
      one step of the optimiser by the loss of half b
      w <- w + rho u g / |g|                                        the same g
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lamella.training.draws import Draws
from lamella.training.fit import Loss

__all__ = ["GradientAlignment"]


class GradientAlignment(Draws):
    """Makes of one loss two, by which a training loop takes two steps a batch, with twice the passes of one step.

    Args:
        rho: the largest distance that a tensor is moved; above 0.

    Raises:
        ValueError: `rho` is not above 0.
    """

    def __init__(self, rho: float) -> None:
        super().__init__()
        if not rho > 0:
            raise ValueError(
                f"rho {rho} must be above 0, or 0 in the settings for no gradient alignment; LoDA's authors have 0.3 "
                "and 0.7"
            )
        self.rho = rho
        self._moved: list[tuple[Tensor, Tensor]] = []

    def losses(self, loss: Loss, weights: Sequence[Tensor]) -> list[Loss]:
        """Return the losses of the two steps of a batch; the training loop calls `move_back` after each step.

        Args:
            loss: (inputs of n samples, global class ids (n,)) -> the mean over them.
            weights: the tensors that are moved; what the loss does not read stays where it is.
        """
        self._moved = []
        return [partial(self._aligned, loss, list(weights), first) for first in (0, 1)]

    @torch.no_grad()
    def move_back(self) -> None:
        """Move the weights back by what the last loss moved them."""
        for weight, step in self._moved:
            weight.sub_(step)
        self._moved = []

    def _aligned(self, loss: Loss, weights: list[Tensor], first: int, x: Any, y: Tensor) -> Tensor:
        """Move the weights by the gradient of half `first` (0 or 1) of the classes, and return the other one's loss."""
        self.move_back()
        halves, distance = self._drawn(y)
        if len(halves) < 2:
            return loss(x, y)
        source, target = halves[first], halves[1 - first]
        gradients = torch.autograd.grad(loss(x[source], y[source]), weights, allow_unused=True)
        used = [(weight, g) for weight, g in zip(weights, gradients, strict=True) if g is not None]
        with torch.no_grad():
            for weight, g in used:
                self._moved.append((weight, -distance * g / (g.norm() + 1e-12)))
                weight.add_(self._moved[-1][1])
        torch.clear_autocast_cache()  # under autocast it holds the weights as they were before
        return loss(x[target], y[target])

    def _drawn(self, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the positions of the samples of each half, and the distance to move; both steps draw the same."""
        classes = y.unique()
        classes = classes[torch.randperm(len(classes), generator=self.generator, device=y.device)]
        distance = self.rho * torch.rand((), generator=self.generator, device=y.device)
        parts = [part for part in classes.tensor_split([len(classes) // 2]) if len(part)]
        return [torch.isin(y, part).nonzero()[:, 0] for part in parts], distance
