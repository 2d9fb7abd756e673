"""Self-distillation: while a task's branch is trained, the same network without this branch is the teacher.

A branch that is switched off leaves the network as it was before the task. So the teacher needs no second copy of the
weights, only a second pass. It is part of E2-LoRA (arXiv 2605.27482); the loss is that of Hinton, Vinyals & Dean, 2015,
arXiv 1503.02531.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lamella.adapters.adapter import Site, using
from lamella.backbones import Backbone
from lamella.backbones.language_model import LanguageModel
from lamella.data.samples import Samples
from lamella.methods.shared.distillation import frozen_copy
from lamella.methods.shared.heads import Heads

__all__ = ["SelfDistillation", "SelfTeacher"]


@dataclass(frozen=True)
class SelfDistillation:
    """How strongly a network in training keeps the answers that it gives without the branch in training.

    Args:
        distill: the weight of T^2 KL(teacher || student) on the logits of old classes, beside the loss of the task; at
            least 0. The teacher is the same network with the task's branch switched off. At 0 there is no teacher;
            otherwise each step has a second forward pass. E2-LoRA has 0.25.
        distill_temperature: T, the temperature of both softmaxes; above 0.

    Raises:
        ValueError: a number is out of its range.
    """

    distill: float = 0.0
    distill_temperature: float = 2.0

    def __post_init__(self) -> None:
        if not self.distill >= 0:
            raise ValueError(f"distill is {self.distill}; it must be 0 or more, and 0 leaves the teacher out")
        if not self.distill_temperature > 0:
            raise ValueError(f"distill_temperature is {self.distill_temperature}; it must be above 0, and 2 is usual")

    def on(self, backbone: Backbone) -> Self:
        """Return the same for a backbone.

        Raises:
            ValueError: there is a teacher, and the backbone is a language model, whose answers have no classes.
        """
        if self.distill and isinstance(backbone.model, LanguageModel):
            raise ValueError(
                f"distill is {self.distill}, which keeps the answers for old classes, and '{backbone.name}' learns "
                "answers without classes; set distill to 0"
            )
        return self

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return distill x T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over n samples.

        Args:
            student: (n, c) logits of old classes, with the branch in training.
            teacher: (n, c) logits of the same classes, without it. No gradient reaches them.
        """
        T = self.distill_temperature
        log_p = (teacher.detach().float() / T).log_softmax(1)
        log_q = (student.float() / T).log_softmax(1)
        return self.distill * T**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


class SelfTeacher:
    """The network of a method as it answers without the branches in training, with the heads of old tasks.

    Args:
        recipe: how strongly the answers are kept.
        sites: where the branches sit.
        current: the names of the adapters in training, which are switched off.
        features: computes the features (n, d) of samples, with whichever adapters act.
        heads: the heads of old tasks, before the new one is added; they are copied.
    """

    def __init__(
        self,
        recipe: SelfDistillation,
        sites: Sequence[Site],
        current: Sequence[str],
        features: Callable[[Samples], Tensor],
        heads: Heads,
    ) -> None:
        self.recipe, self.sites, self.features = recipe, sites, features
        self.heads = frozen_copy(heads)
        self.others = sorted({name for site in sites for name in site.layer.branches} - set(current))

    def loss(self, x: Samples, features: Tensor) -> Tensor:
        """Return the loss of samples.

        Args:
            x: n samples.
            features: (n, d), theirs with all branches.
        """
        with torch.no_grad(), using(self.sites, self.others):
            teacher = self.heads(self.features(x))
        return self.recipe.loss(self.heads(features), teacher)
