"""MEMO: the first layers are shared by all tasks, and only the last ones get a copy for each task.

Zhou, Wang, Ye & Zhan, "A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning", ICLR 2023,
arXiv 2205.13218. Public code read for the form and its settings: PyCIL (github.com/G-U-N/PyCIL).

Layers near the input change little from task to task and are much alike, those near the output are not. So DER's whole
extractor for each task (arXiv 2103.16788) is more than is needed, and what is saved can be spent on exemplars.

    paper                       here
    generalized blocks phi_g    trunk: the layers before `cut`, shared
    specialized blocks phi_s    tail: the layers from `cut` on, one for each task
    [phi_s1(phi_g(x)), ...]     (n, t d) features
    W                           heads, as wide as the features
    auxiliary loss              auxiliary: |Y_t| + 1 outputs on the newest tail alone, every older class being one

Stored after t tasks with c classes: one trunk, t tails, c (t d + 1) numbers of the classifier, and the exemplars.

Departures and choices ([c]: as PyCIL's code has it):
- The trunk is trained on in every task, as the code's configuration says [c], so that old tails, which are frozen, see
  inputs that move; `train_trunk=False` freezes it after the first task.
- The classifier's new rows are aligned after training (Zhao et al., CVPR 2020) [c]; `align=False` leaves them.
- The first task has no auxiliary loss and no alignment [c]; its rate, weight decay and shares of epochs are those of
  later ones.
- A new tail starts as a copy of the last one [c].
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
from lamella.backbones.resnets import block_names, check_split, split
from lamella.data.scenario import Task
from lamella.memory.exemplars import Exemplars
from lamella.methods.method import Method
from lamella.methods.shared.classifier import align_new_rows, new_or_old, start_draws, train_weights, widened
from lamella.methods.shared.heads import Head, Heads
from lamella.training.fit import Fit
from lamella.training.schedules import milestone_schedule

__all__ = ["MEMO"]


class MEMO(Method):
    """A shared trunk and one tail a task, with PyCIL's settings for CIFAR-100.

    Args:
        backbone: a residual network; trunk and first tail.
        cut: the stage or block where tails begin, such as "stage3" or "layer4.1"; the last stage where left out.
        train_trunk: whether the trunk is trained in every task, or in the first one only.
        auxiliary_weight: of the auxiliary classifier's loss.
        align: whether new rows are scaled to the mean length of old ones after training.
        memory: exemplars of all classes together; 0 for none. memory_per_class: exemplars of each class instead.
        choose: which images become exemplars: "herding", "random" or "reservoir".
        epochs: of a task. first_epochs: of the first task; as `epochs` where left out.
        lr, batch_size, optimizer, momentum, weight_decay: of trunk, newest tail and all heads.
        milestones: shares of the epochs at which the learning rate falls to a tenth.
        head_start: "uniform" (torch's own) or "zero": of new rows and columns, and of the auxiliary classifier.

    Attributes:
        tails: those of the second and later tasks; the first is the backbone's own.

    Raises:
        ValueError: the backbone has no stages of convolutions, or no such stage or block.
    """

    changes_backbone = True
    widens = True

    def __init__(
        self, backbone: Backbone, *, seed: int = 0, cut: str | None = None, train_trunk: bool = True,
        auxiliary_weight: float = 1.0, align: bool = True, memory: int | None = 2000,
        memory_per_class: int | None = None, choose: str = "herding", epochs: int = 170,
        first_epochs: int | None = None, lr: float = 0.1, batch_size: int = 128, optimizer: str = "sgd",
        momentum: float = 0.9, weight_decay: float = 2e-4, milestones: Sequence[float] = (0.47, 0.705, 0.88),
        head_start: str = "uniform",
    ) -> None:  # fmt: skip
        super().__init__()
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight {auxiliary_weight} is below 0; 1 is usual, 0 leaves the loss out")
        self.backbone, self.seed, self.train_trunk = backbone, seed, train_trunk
        self.cut = cut or block_names(backbone.model)[-1].split(".")[0]
        check_split(backbone.model, self.cut, backbone.transform.size)  # refuses what cannot be cut there
        self.auxiliary_weight, self.align = auxiliary_weight, align
        self.memory, self.memory_per_class, self.choose = memory, memory_per_class, choose
        self.epochs, self.first_epochs, self.lr, self.batch_size = epochs, first_epochs, lr, batch_size
        self.optimizer, self.momentum, self.weight_decay = optimizer, momentum, weight_decay
        self.milestones, self.schedule = milestones, milestone_schedule(milestones)
        self.tails = nn.ModuleList()
        self.head_start, self.heads = head_start, Heads(backbone.width, head_start, seed)
        self.exemplars = Exemplars(
            backbone.transform.size, total=memory, per_class=memory_per_class, choose=choose, seed=seed
        )

    def features(self, x: Tensor) -> Tensor:
        """(n, t d) features of all tails, oldest first."""
        trunk, first = split(self.backbone.model, self.cut)
        shared = trunk(x)
        return torch.cat([tail(shared) for tail in (first, *self.tails)], dim=1)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        data = self.exemplars.join(task.train, task.classes)
        number, d = len(self.heads), self.backbone.width
        trunk, first = split(self.backbone.model, self.cut)
        newest = first if number == 0 else self._expand(first)
        modules = [trunk, newest] if number == 0 or self.train_trunk else [newest]
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

        trained = [weight for module in (*modules, self.heads) for weight in module.parameters()]
        trained += [*auxiliary.parameters()] if number else []
        train_weights(self, fit, data, loss, trained, moving=modules)  # batch-norm statistics of the others stay too
        if self.align and number:
            align_new_rows(self.heads)
        self.exemplars.refill(data, self.features, fit, task.classes)

    def _expand(self, first: nn.Module) -> nn.Module:
        """A new tail, a copy of the last one, and columns of the classifier for its features."""
        newest = copy.deepcopy([first, *self.tails][-1])
        self.tails.append(newest)
        columns = start_draws(self.heads, "columns", len(self.tails))
        self.heads = widened(self.heads, (1 + len(self.tails)) * self.backbone.width, columns)
        return newest

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        start = prefix + "tails."
        count = len({key[len(start) :].split(".")[0] for key in state_dict if key.startswith(start)})
        _, first = split(self.backbone.model, self.cut)
        self.tails = nn.ModuleList(copy.deepcopy(first) for _ in range(count))
        heads = Heads((1 + count) * self.backbone.width, self.head_start, self.seed)
        self.heads = heads.to(self.heads.here.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
