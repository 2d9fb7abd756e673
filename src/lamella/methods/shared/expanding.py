"""The base class of methods that copy their network, or its last layers, for each task: DER and MEMO."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.exemplars import Kept
from lamella.methods.shared.classifier import PYCIL, FromScratch, align_new_rows, new_or_old, start_draws, widened
from lamella.methods.shared.heads import Head, Heads
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["Expanding"]


class Expanding(FromScratch):
    """One classifier on the features of all copies side by side, and an auxiliary one on those of the newest.

    Args:
        backbone: the feature extractor; its own layers serve the first task.
        seed: the seed of every random draw.
        training: how a task is trained.
        kept: how many images of old classes are kept, and which.
        auxiliary_weight: the factor of the auxiliary classifier's loss; at least 0, and 0 leaves the loss out.
        align: whether the classifier rows of new classes are scaled after training to the mean length of the old ones.

    Attributes:
        copies: the name of the attribute that has the copies of the second and later tasks.

    Raises:
        ValueError: the backbone joins the class token and the mean of the other tokens, or `auxiliary_weight` is below
            0.
    """

    widens = True
    copies: ClassVar[str]

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = replace(PYCIL, epochs=170, milestones=(0.47, 0.705, 0.88)),
        kept: Kept = Kept(),
        auxiliary_weight: float = 1.0,
        align: bool = True,
    ) -> None:
        super().__init__(backbone, seed, training, kept)
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight {auxiliary_weight} is below 0; 1 is usual, 0 leaves the loss out")
        if backbone.pool != "model":
            raise ValueError(f"copies of a backbone with pool '{backbone.pool}' cannot be made; use pool 'model'")
        self.auxiliary_weight = auxiliary_weight
        self.align = align
        setattr(self, self.copies, nn.ModuleList())

    def first(self) -> nn.Module:
        """Return the layers of the backbone that are copied for the second task."""
        raise NotImplementedError

    def trained(self, newest: nn.Module) -> tuple[Iterable[Tensor], Sequence[nn.Module]]:
        """Return what a task trains besides the classifiers.

        Args:
            newest: the layers of this task.

        Returns:
            The trained weights, and the modules whose batch-norm statistics are updated.
        """
        raise NotImplementedError

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        data = self.exemplars.join(task.train, task.classes)
        weights, moving = self.trained(self._newest())
        number, d = len(self.heads), self.backbone.width
        self.heads.grow(task.classes)
        draws = start_draws(self.heads, "auxiliary", number)
        auxiliary = Head(d, range(len(task.classes) + 1), draws, self.heads.start).to(self.heads.here.device)

        def loss(x: Samples, y: Tensor) -> Tensor:
            features = self.features(x)
            every = F.cross_entropy(self.heads(features), self.heads.columns(y))
            if number == 0:
                return every
            own = F.cross_entropy(auxiliary(features[:, -d:]), new_or_old(y, task.classes))
            return every + self.auxiliary_weight * own

        classifiers = nn.ModuleList([self.heads, auxiliary] if number else [self.heads])
        self.train_weights(fit, data, loss, weights, classifiers, moving=moving)
        if self.align and number:
            align_new_rows(self.heads)
        self.exemplars.refill(data, self.features, fit, task.classes)

    def _newest(self) -> nn.Module:
        """Return the layers for a new task: the backbone's own ones, or a copy of the last ones, with new columns."""
        if not len(self.heads):
            return self.first()
        later = cast(nn.ModuleList, getattr(self, self.copies))
        later.append(copy.deepcopy([self.first(), *later][-1]))
        columns = start_draws(self.heads, "columns", len(later))
        self.heads = widened(self.heads, (1 + len(later)) * self.backbone.width, columns)
        return later[-1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        start = f"{prefix}{self.copies}."
        count = len({key[len(start) :].split(".")[0] for key in state_dict if key.startswith(start)})
        setattr(self, self.copies, nn.ModuleList(copy.deepcopy(self.first()) for _ in range(count)))
        heads = Heads((1 + count) * self.backbone.width, self.heads.start, self.seed)
        self.heads = heads.to(self.heads.here.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
