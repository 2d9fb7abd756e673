"""DER: a new feature extractor for each task beside the frozen ones, and one classifier on all their features.

Yan, Xie & He, "DER: Dynamically Expandable Representation for Class Incremental Learning", CVPR 2021, arXiv 2103.16788.
Not Dark Experience Replay, which shares the short name. Public code read for the form without pruning and its settings:
PyCIL (github.com/G-U-N/PyCIL), whose DER has neither masks nor pruning.

Old extractors never change, so what they tell of old classes stays. The new one is pushed to tell what they do not: an
auxiliary classifier that sees only its features names the new classes, and calls everything old by one name.

    paper                       here
    Phi_t, F_t                  features: those of all extractors side by side; the newest extractor
    u = [Phi_{t-1}(x), F_t(x)]  (n, t d)
    H_t                         heads, as wide as the features
    H_t^a                       auxiliary: |Y_t| + 1 outputs on F_t alone, thrown away after training
    L_Ht, L_Hta                 cross-entropies of both
    lambda_a                    auxiliary_weight
    M_t                         exemplars

Stored after t tasks with c classes: t extractors, c (t d + 1) numbers of the classifier, and the exemplars.

Departures (from the paper [p], from PyCIL's code [c]):
- No masks and no pruning, so every task adds a whole extractor [c]; the paper's second stage makes them smaller [p].
- The classifier is not trained again on balanced data [p]; its new rows are aligned instead (Zhao et al., CVPR 2020)
  [c]; `align=False` leaves them.
- The first task has no auxiliary loss and no alignment [c]; its rate, weight decay and shares of epochs are those of
  later ones.
- A new extractor starts as a copy of the last one [c].
- New columns and rows start as torch's linear layer does by default. Of classes that come back the new rows count, as
  new ones.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.memory.exemplars import Exemplars
from lamella.methods.method import Method
from lamella.methods.shared.classifier import align_new_rows, new_or_old, start_draws, train_weights, widened
from lamella.methods.shared.heads import Head, Heads
from lamella.training.fit import Fit
from lamella.training.schedules import milestone_schedule

__all__ = ["DER"]


class DER(Method):
    """One extractor a task, with PyCIL's settings for CIFAR-100.

    Args:
        backbone: of any kind; the first task's extractor, copied for later ones.
        auxiliary_weight: lambda_a, of the auxiliary classifier's loss.
        align: whether new rows are scaled to the mean length of old ones after training.
        memory: exemplars of all classes together; 0 for none. memory_per_class: exemplars of each class instead.
        choose: which images become exemplars: "herding", "random" or "reservoir".
        epochs: of a task. first_epochs: of the first task; as `epochs` where left out.
        lr, batch_size, optimizer, momentum, weight_decay: of the newest extractor and all heads.
        milestones: shares of the epochs at which the learning rate falls to a tenth.
        head_start: "uniform" (torch's own) or "zero": of new rows and columns, and of the auxiliary classifier.

    Attributes:
        extractors: those of the second and later tasks.

    Raises:
        ValueError: a backbone that joins the class token and the mean of the others.
    """

    changes_backbone = True
    widens = True

    def __init__(
        self, backbone: Backbone, *, seed: int = 0, auxiliary_weight: float = 1.0, align: bool = True,
        memory: int | None = 2000, memory_per_class: int | None = None, choose: str = "herding", epochs: int = 170,
        first_epochs: int | None = None, lr: float = 0.1, batch_size: int = 128, optimizer: str = "sgd",
        momentum: float = 0.9, weight_decay: float = 2e-4, milestones: Sequence[float] = (0.47, 0.705, 0.88),
        head_start: str = "uniform",
    ) -> None:  # fmt: skip
        super().__init__()
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight {auxiliary_weight} is below 0; 1 is usual, 0 leaves the loss out")
        if backbone.pool != "model":
            raise ValueError(f"copies of a backbone with pool '{backbone.pool}' cannot be made; use pool 'model'")
        self.backbone, self.seed, self.auxiliary_weight, self.align = backbone, seed, auxiliary_weight, align
        self.memory, self.memory_per_class, self.choose = memory, memory_per_class, choose
        self.epochs, self.first_epochs, self.lr, self.batch_size = epochs, first_epochs, lr, batch_size
        self.optimizer, self.momentum, self.weight_decay = optimizer, momentum, weight_decay
        self.milestones, self.schedule = milestones, milestone_schedule(milestones)
        self.extractors = nn.ModuleList()
        self.head_start, self.heads = head_start, Heads(backbone.width, head_start, seed)
        self.exemplars = Exemplars(
            backbone.transform.size, total=memory, per_class=memory_per_class, choose=choose, seed=seed
        )

    def features(self, x: Tensor) -> Tensor:
        """(n, t d) features of all extractors, oldest first."""
        return torch.cat([extractor(x) for extractor in (self.backbone.model, *self.extractors)], dim=1)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        data = self.exemplars.join(task.train, task.classes)
        number, d = len(self.heads), self.backbone.width
        newest = self.backbone.model if number == 0 else self._expand()
        self.heads.grow(task.classes)
        auxiliary = Head(d, range(len(task.classes) + 1), start_draws(self.heads, "auxiliary", number))
        auxiliary = auxiliary.to(next(newest.parameters()).device)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            features = self.features(x)
            every = F.cross_entropy(self.heads(features), self.heads.columns(y))
            if number == 0:
                return every
            own = F.cross_entropy(auxiliary(features[:, -d:]), new_or_old(y, task.classes))
            return every + self.auxiliary_weight * own

        trained = [*self._used(newest), *self.heads.parameters(), *(auxiliary.parameters() if number else ())]
        train_weights(self, fit, data, loss, trained, moving=[newest])  # batch-norm statistics of the others stay too
        if self.align and number:
            align_new_rows(self.heads)
        self.exemplars.refill(data, self.features, fit, task.classes)

    def _expand(self) -> nn.Module:
        """A new extractor, a copy of the last one, and columns of the classifier for its features."""
        newest = copy.deepcopy([self.backbone.model, *self.extractors][-1])
        self.extractors.append(newest)
        columns = start_draws(self.heads, "columns", len(self.extractors))
        self.heads = widened(self.heads, (1 + len(self.extractors)) * self.backbone.width, columns)
        return newest

    def _used(self, extractor: nn.Module) -> list[nn.Parameter]:
        """The parameters of a copy of the backbone that its features depend on."""
        used = {id(weight) for weight in self.backbone.used_weights()}
        pairs = zip(self.backbone.model.parameters(), extractor.parameters(), strict=True)
        return [own for original, own in pairs if id(original) in used]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        start = prefix + "extractors."
        count = len({key[len(start) :].split(".")[0] for key in state_dict if key.startswith(start)})
        self.extractors = nn.ModuleList(copy.deepcopy(self.backbone.model) for _ in range(count))
        heads = Heads((1 + count) * self.backbone.width, self.head_start, self.seed)
        self.heads = heads.to(self.heads.here.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
