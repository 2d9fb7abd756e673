"""Networks that get a copy of themselves, or of their last layers, with each task: what DER and MEMO share."""

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
        backbone: the first copy is of its own layers.
        seed: of all draws.
        training: how a task is trained.
        kept: which images of old classes are kept.
        auxiliary_weight: of the auxiliary classifier's loss; at least 0.
        align: whether new rows are scaled to the mean length of old ones after training.

    Attributes:
        copies: the name of the attribute that holds the copies of the second and later tasks.

    Raises:
        ValueError: the backbone joins the class token and the mean of the others, or a weight is below 0.
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
        """The layers of the backbone that are copied for the second task."""
        raise NotImplementedError

    def trained(self, newest: nn.Module) -> tuple[Iterable[Tensor], Sequence[nn.Module]]:
        """What a task trains beside the classifiers: weights, and the modules whose batch-norm statistics move."""
        raise NotImplementedError

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        data = self.exemplars.join(task.train, task.classes)
        weights, moving = self.trained(self._newest())
        number, d = len(self.heads), self.backbone.width
        self.heads.grow(task.classes)
        auxiliary = Head(d, range(len(task.classes) + 1), start_draws(self.heads, "auxiliary", number))
        auxiliary = auxiliary.to(self.heads.here.device)

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
        """The layers of the backbone for the first task; for others a new copy of the last ones, with its columns."""
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
