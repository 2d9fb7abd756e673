"""What a method trains for: the classes of a task, or the tokens of its answers. A method is a rule about weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.backbones.language_model import LanguageModel
from lamella.data.answer_tokens import TARGET
from lamella.data.samples import Batch
from lamella.data.scenario import Task
from lamella.methods.shared.heads import Head, Heads
from lamella.methods.shared.pseudo_replay import PseudoReplay
from lamella.methods.shared.self_distillation import SelfTeacher

__all__ = ["Classes", "Objective", "Target", "Terms", "TokensOfAnswers", "learns_answers"]


@dataclass(frozen=True)
class Terms:
    """What a method adds to the loss of a task, or has in another way.

    Attributes:
        losses: computes what each target token of a batch of answers costs, (targets,).
        features: computes the features that a head classifies.
        criterion: the loss of logits (n, own classes) and columns (n,).
        penalty: returns a number that is added to the loss of each batch.
        teacher: keeps the answers for old classes.
        pseudo_replay: what is known of old classes, with which those of the task compete.
        go_on: whether known classes go on with the rows that they have, and all classes seen compete; else each task
            has a head of its own, in which its classes begin anew.
    """

    losses: Callable[[Any], Tensor]
    features: Callable[[Any], Tensor]
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    penalty: Callable[[], Tensor | float] | None = None
    teacher: SelfTeacher | None = None
    pseudo_replay: PseudoReplay | None = None
    go_on: bool = False


@dataclass(frozen=True)
class Target:
    """What one call of the training loop minimises.

    Attributes:
        loss: (inputs of n samples, global class ids (n,)) -> a mean over what is counted in the batch.
        head: what is trained beside the weights below it; None where there is nothing.
        count: (inputs, global class ids) -> how many things the loss is the mean of; None for samples.
    """

    loss: Callable[[Any, Tensor], Tensor]
    head: nn.Module | None = None
    count: Callable[[Any, Tensor], int] | None = None


class Objective(ABC):
    """What a method trains for. Its length is the number of tasks that were begun."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def begin(self, task: Task, terms: Terms) -> Target:
        """Begin a task, and return what is minimised in it.

        Args:
            task: the task to learn.
            terms: what the method adds to the loss.
        """


class Classes(Objective):
    """The classes of a task, by cross-entropy of a head of its own.

    Args:
        heads: the heads of all tasks, to which that of a new task is added.
    """

    def __init__(self, heads: Heads) -> None:
        self.heads = heads

    def __len__(self) -> int:
        return len(self.heads)

    def begin(self, task: Task, terms: Terms) -> Target:
        head, pseudo_replay = self._grown(task.classes, terms.go_on), terms.pseudo_replay
        if pseudo_replay is not None:
            pseudo_replay.start(self.heads)
        # Only this task's classes compete, or all do.
        rows = self.heads if pseudo_replay is not None or head is None else head

        def loss(x: Any, y: Tensor) -> Tensor:
            found, columns = terms.features(x), rows.columns(y)
            value = terms.criterion(rows(found), columns)
            value = value if pseudo_replay is None else value + pseudo_replay.loss(self.heads)
            value = value if terms.penalty is None else value + terms.penalty()
            return value if terms.teacher is None else value + terms.teacher.loss(x, found)

        return Target(loss, rows)

    def _grown(self, classes: Sequence[int], go_on: bool) -> Head | None:
        """The new head of a task; None where known classes go on, and only new ones got rows."""
        if not go_on:
            return self.heads.grow(classes)
        if new := [c for c in classes if c not in self.heads.classes]:
            self.heads.grow(new)
        return None


class TokensOfAnswers(nn.Module, Objective):
    """The tokens of answers, each from those before it. Nothing is trained beside the method's weights.

    A batch's loss is the mean over its target tokens, and a step's is that over the targets of all of its batches.

    Attributes:
        tasks: (), int64, how many tasks were begun.
    """

    tasks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tasks", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return int(self.tasks)

    def begin(self, task: Task, terms: Terms) -> Target:
        self.tasks += 1

        def loss(x: Batch, _: Tensor) -> Tensor:
            value = terms.losses(x).mean()
            return value if terms.penalty is None else value + terms.penalty()

        return Target(loss, count=lambda x, _: int(x[TARGET].sum()))


def learns_answers(backbone: Backbone) -> bool:
    """Whether what is learned on a backbone are answers, and not classes."""
    return isinstance(backbone.model, LanguageModel)
