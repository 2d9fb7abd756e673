"""One head a task, trained on the task's own classes together with what lies below it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Branch
from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.methods.method import Method
from lamella.methods.shared.heads import Heads
from lamella.training.fit import Examples, Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["OwnHeads", "factors", "with_head"]


class OwnHeads(Method):
    """A method in which the head of each task is trained on that task's classes alone.

    Args:
        backbone: the feature extractor.
        seed: of all draws.
        training: how a task is trained; kept as `recipe`, for torch's modules have a `training` of their own.
        lora: the branches; a method that has none leaves it out.
    """

    lora: LoRA

    def __init__(self, backbone: Backbone, seed: int, training: Training, lora: LoRA | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.seed = seed
        self.recipe = training
        self.heads = Heads(backbone.width, training.head_start, seed)
        if lora is not None:
            self.lora = lora
            self.sites = lora.attach(backbone)

    def train_head(
        self,
        task: Task,
        fit: Fit,
        weights: Iterable[Tensor] = (),
        *,
        data: Examples | None = None,
        features: Callable[[Any], Tensor] | None = None,
        penalty: Callable[[], Tensor | float] | None = None,
        **hooks: Any,
    ) -> None:
        """Give a task its head; train it, and weights below it, by cross-entropy among the task's classes.

        Args:
            task: to be learned.
            fit: the loop.
            weights: what is trained beside the head, at the recipe's learning rate.
            data: what it is trained on; the task's samples where left out.
            features: what the head classifies; the method's features where left out.
            penalty: gives a number that is added to the loss of each batch.
            hooks: `before_step` and `after_step` of the loop.
        """
        training = self.recipe.of_task(len(self.heads))
        head = self.heads.grow(task.classes)
        features = features or self.features

        def loss(x: Any, y: Tensor) -> Tensor:  # only this task's classes compete
            value = F.cross_entropy(head(features(x)), head.columns(y))
            return value if penalty is None else value + penalty()

        fit(task.train if data is None else data, loss, with_head(weights, head, training), training, **hooks)


def factors(branches: Iterable[Branch]) -> list[nn.Parameter]:
    """A and B of each branch, in their order: what is trained where both are."""
    return [factor for branch in branches for factor in (branch.A, branch.B)]


def with_head(weights: Iterable[Tensor], head: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Weights and a head as groups of an optimiser, the head with its own learning rate where the recipe has one."""
    own = {} if training.head_lr is None else {"lr": training.head_lr}
    return [{"params": list(weights)}, {"params": list(head.parameters()), **own}]
