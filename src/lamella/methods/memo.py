"""MEMO: the first layers are shared by all tasks, and only the last ones get a copy for each task.

Zhou, Wang, Ye & Zhan, "A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning", ICLR 2023,
arXiv 2205.13218. Public code read for the form and its settings: PyCIL (github.com/G-U-N/PyCIL).

Layers near the input change little from task to task, layers near the output change much. So a whole extractor for each
task, as in DER (arXiv 2103.16788), is more than is needed, and the memory that is saved can hold more exemplars.

    paper                       here
    generalized blocks phi_g    trunk: the layers before `cut`, shared
    specialized blocks phi_s    tail: the layers from `cut` on, one for each task
    [phi_s1(phi_g(x)), ...]     (n, t d) features
    W                           heads, as wide as the features
    auxiliary loss              auxiliary: |Y_t| + 1 outputs on the newest tail alone, every older class being one

Stored after t tasks with c classes: one trunk, t tails, c (t d + 1) numbers of the classifier, and the exemplars.

Departures and choices ([c]: as PyCIL's code has it):
- The trunk is trained in every task, as in the code's configuration [c]. So the inputs of the old tails, which are
  frozen, change.
- The classifier's new rows are aligned after training (Zhao et al., CVPR 2020) [c]; `align=False` leaves them.
- The first task has no auxiliary loss and no alignment [c]. It has the weight decay and shares of epochs of later ones;
  the code's has 200 epochs with falls at 60, 120 and 170 and a decay of 5e-4 [c].
- A new tail starts as a copy of the last one [c].
- New columns and rows start as torch's linear layers do; the code's are `head_start="kaiming"` [c]. A class that comes
  back gets a new row, which replaces its old one and counts as new.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.backbones.resnets import block_names, check_split, split
from lamella.data.samples import Samples
from lamella.memory.exemplars import Kept
from lamella.methods.shared.classifier import PYCIL
from lamella.methods.shared.expanding import Expanding
from lamella.training.recipe import Training

__all__ = ["MEMO"]


class MEMO(Expanding):
    """A shared trunk and one tail for each task, with PyCIL's settings for CIFAR-100.

    Args:
        backbone: a residual network, which is cut into the trunk and the tail of the first task.
        seed: the seed of every random draw.
        training: how the trunk, the newest tail and all heads are trained; see `Training`.
        kept: how many images of old classes are kept, and which; see `Kept`.
        auxiliary_weight: the factor of the auxiliary classifier's loss; at least 0, and 0 leaves the loss out.
        align: whether the classifier rows of new classes are scaled after training to the mean length of the old ones.
        cut: the stage or block where the tails begin, such as "stage3" or "layer4.1". If left out, the last stage.

    Attributes:
        tails: the tails of the second and later tasks; the first tail is part of the backbone.

    Raises:
        ValueError: a value is not allowed, or the backbone has no stages of convolutions, or no such stage or block.
    """

    copies = "tails"
    removed: ClassVar[dict[str, Any]] = {"train_trunk": True}
    tails: nn.ModuleList

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = replace(PYCIL, epochs=170, milestones=(0.47, 0.705, 0.88)),
        kept: Kept = Kept(),
        auxiliary_weight: float = 1.0,
        align: bool = True,
        cut: str | None = None,
    ) -> None:
        cut = cut or block_names(backbone.model)[-1].split(".")[0]  # refuses a network without stages before all else
        super().__init__(
            backbone, seed=seed, training=training, kept=kept, auxiliary_weight=auxiliary_weight, align=align
        )
        self.cut = cut
        check_split(backbone.model, self.cut, backbone.transform)  # refuses what cannot be cut there

    def first(self) -> nn.Module:
        return split(self.backbone.model, self.cut)[1]

    def features(self, x: Samples) -> Tensor:
        """(n, t d) features of all tails, oldest first."""
        trunk, first = split(self.backbone.model, self.cut)
        shared = trunk(x)
        return torch.cat([tail(shared) for tail in (first, *self.tails)], dim=1)

    def trained(self, newest: nn.Module) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """Return the weights of the trunk and the newest tail, and these two; statistics of old tails stay."""
        modules = [split(self.backbone.model, self.cut)[0], newest]
        return [weight for module in modules for weight in module.parameters()], modules
