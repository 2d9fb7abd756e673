"""The base class of methods that train for one task alone: a head on its own classes, or the tokens of its answers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Branch
from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.methods.method import Method
from lamella.methods.shared.gradient_alignment import GradientAlignment
from lamella.methods.shared.growing import grow_for_task
from lamella.methods.shared.heads import Heads
from lamella.methods.shared.objectives import Classes, Objective, Terms, TokensOfAnswers, learns_answers
from lamella.methods.shared.pseudo_replay import PseudoReplay
from lamella.methods.shared.refusals import check_objective
from lamella.methods.shared.self_distillation import SelfDistillation, SelfTeacher
from lamella.training.fit import Examples, Fit, Loss
from lamella.training.recipe import LoRA, Training
from lamella.training.variants import check_variants

__all__ = ["OwnHeads", "cross_entropy", "factors", "with_head"]


class OwnHeads(Method):
    """A method in which the head of each task is trained on that task's classes alone.

    With a language model as its backbone there are no heads: what is trained for are the tokens of answers.

    Args:
        backbone: the feature extractor.
        seed: the seed of every random draw.
        training: how a task is trained; stored as `recipe`, because torch's modules have an attribute `training`.
        lora: the form of the branches; a method that has none leaves it out.

    Raises:
        ValueError: the form of the branches breaks what the method needs; see `Method.needs`.

    Attributes:
        pseudo_replay: what alignment with `compete` knows of old classes, while a task is trained; else None. The
            classes of the task then compete with them, and all heads are trained.
    """

    lora: LoRA
    pseudo_replay: PseudoReplay | None

    def __init__(self, backbone: Backbone, seed: int, training: Training, lora: LoRA | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.seed = seed
        self.pseudo_replay = None
        self.recipe = training
        check_objective(type(self).__name__, self.answers, backbone)
        if learns_answers(backbone):
            self.of_answers = TokensOfAnswers()
        else:
            self.heads = Heads(backbone.width, training.head_start, seed)
        if lora is not None:
            check_variants(type(self).__name__, self.needs, lora)
            self.lora = lora
            self.sites = lora.attach(backbone)

    @property
    def objective(self) -> Objective:
        """What is trained for: classes, or the tokens of answers where the backbone is a language model."""
        tokens = self._modules.get("of_answers")
        return tokens if isinstance(tokens, TokensOfAnswers) else Classes(self.heads)

    def train_head(
        self,
        task: Task,
        fit: Fit,
        weights: Iterable[Tensor] = (),
        *,
        data: Examples | None = None,
        features: Callable[[Any], Tensor] | None = None,
        penalty: Callable[[], Tensor | float] | None = None,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        distillation: SelfDistillation | None = None,
        alignment: GradientAlignment | None = None,
        current: Sequence[str] = ("new",),
        **hooks: Any,
    ) -> None:
        """Train weights for a task: with a new head, by cross-entropy among its classes, or for its answers' tokens.

        With `pseudo_replay` all heads are trained, by cross-entropy among all classes. So they are in a stream
        (`fit.once`), where classes that come again go on with the rows that they have.

        Args:
            task: the task to learn.
            fit: the training loop.
            weights: what is trained besides the head, with the recipe's learning rate.
            data: the training data; the task's samples if left out.
            features: computes the features that the head classifies; those of the method if left out.
            penalty: returns a number that is added to the loss of each batch.
            criterion: the loss of logits (n, own classes) and columns (n,), in place of cross-entropy.
            distillation: how strongly the answers for old classes are kept, where they are; see `SelfDistillation`.
            alignment: with it, a batch gives two steps, each of half of its classes; see `GradientAlignment`.
            current: the names of the adapters in training, which the teacher of `distillation` does without.
            hooks: `before_step` and `after_step` of the training loop. With `alignment` there is no `before_step`.

        Raises:
            ValueError: there are both an alignment and a `before_step`.
        """
        training = self.recipe.of_task(len(self.objective))
        features, teacher = features or self.features, None
        if distillation is not None and distillation.distill and len(self.objective):
            teacher = SelfTeacher(distillation, self.sites, current, features, self.heads)
        target = self.objective.begin(
            task, Terms(self.losses, features, criterion, penalty, teacher, self.pseudo_replay, go_on=fit.once)
        )
        weights = list(weights)
        groups = self._groups(weights, training)
        loss: Loss | list[Loss] = target.loss
        if alignment is not None:
            if hooks.get("before_step"):
                raise ValueError(
                    f"{type(self).__name__} looks at its weights before each step, when gradient alignment has moved "
                    "them; leave before_step or the alignment out"
                )
            loss = alignment.losses(target.loss, weights)
            hooks["after_step"] = _one_after_the_other(alignment.move_back, hooks.get("after_step"))
        fit(
            task.train if data is None else data,
            loss,
            groups if target.head is None else with_head(groups, target.head, training),
            training,
            count=target.count,
            **hooks,
        )

    def grow_new(self, name: str, draws: torch.Generator, task: Task, fit: Fit) -> list[Branch]:
        """Add an adapter of this name to all sites, for a task; see `grow_for_task`."""
        return grow_for_task(self.lora, self, self.sites, name, draws, task, fit)

    def _groups(self, weights: Iterable[Tensor], training: Training) -> list[dict[str, Any]]:
        """The optimiser groups of weights below the head."""
        lora = getattr(self, "lora", None)
        return [{"params": list(weights)}] if lora is None else lora.groups(weights, self.sites, training.lr)


def _one_after_the_other(first: Callable[[], None], then: Callable[[], None] | None) -> Callable[[], None]:
    """A function that calls both; the second may be missing."""

    def both() -> None:
        first()
        if then is not None:
            then()

    return both


def cross_entropy(logits: Tensor, columns: Tensor, *, margin: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Return the cross-entropy of a batch, with a margin or a temperature.

    Args:
        logits: (n, classes).
        columns: (n,), the right column of each sample.
        margin: what is subtracted from the right logit first, so that the classes are parted further; at least 0.
        temperature: what the logits are divided by; above 0.
    """
    lowered = logits - margin * F.one_hot(columns, logits.shape[1]) if margin else logits
    return F.cross_entropy(lowered / temperature, columns)


def factors(branches: Iterable[Branch]) -> list[nn.Parameter]:
    """Return what is trained of each branch, A and B in the usual form, in the order of the branches."""
    return [factor for branch in branches for factor in branch.factors]


def with_head(groups: Sequence[dict[str, Any]], head: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Return optimiser groups and that of a head, which has the recipe's `head_lr`, if there is one.

    Args:
        groups: those of the weights below the head; see `LoRA.groups`.
        head: the head.
        training: the recipe.
    """
    own = {} if training.head_lr is None else {"lr": training.head_lr}
    return [*groups, {"params": list(head.parameters()), **own}]
