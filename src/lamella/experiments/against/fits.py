"""Fits for comparisons: one that keeps what was trained, and one that gives weights numbers in place of training."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from lamella.data.scenario import Task
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["Drawn", "learned_pairs"]


class Drawn(Fit):
    """The passes of a task, and in place of its training a function.

    Args:
        method: the method that learns, on the CPU and without augmentation.
        train: is given the loss and the tensors to train, which take gradients until it returns.
    """

    def __init__(self, method: Any, train: Callable[[Any, list[Tensor]], None]) -> None:
        super().__init__(method, method.backbone.transform, device="cpu")
        self.train = train

    def __call__(
        self,
        data: Any,
        loss: Any,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        training: Training | None = None,
        **_: Any,
    ) -> list[float]:
        tensors = [p for group in params for p in (group["params"] if isinstance(group, dict) else [group])]
        for tensor in tensors:
            tensor.requires_grad_(True)
        self.train(loss, tensors)
        for tensor in tensors:
            tensor.requires_grad_(False)
        return []


def learned_pairs(method: Any, task: Task) -> list[tuple[Tensor, Tensor]]:
    """Let a method learn a task, and return A and B of each site as trained, before they are folded."""
    fit = _Noting(method, method.backbone.transform, device="cpu")
    fit.begin(str(task.id))
    method.learn(task, fit)
    method.eval()
    return fit.pairs


class _Noting(Fit):
    """A fit that keeps the pairs of the new branches as they are after training."""

    pairs: list[tuple[Tensor, Tensor]]

    def __call__(self, *args: Any, **options: Any) -> list[float]:
        losses = super().__call__(*args, **options)
        sites: Any = self.module.sites
        new = [branch for site in sites for branch in site.layer.of("new") if branch.rows == site.rows]
        self.pairs = [(branch.A.detach().clone(), branch.B.detach().clone()) for branch in new]
        return losses
