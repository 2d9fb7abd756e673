"""A fit that trains nothing: it gives weights numbers, so that two sides can be compared with the same ones."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["Drawn"]


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
