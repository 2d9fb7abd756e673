"""iCaRL: exemplars chosen by herding, distillation from the model before, and the nearest mean of exemplars.

Rebuffi, Kolesnikov, Sperl & Lampert, "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, arXiv
1611.07725. Public code read for the softmax form and for settings: PyCIL (github.com/G-U-N/PyCIL).

    paper                       here
    phi                         features
    P_y, K, m = K / t           exemplars of class y, memory, Exemplars.quota
    mu_y                        means: of the class's exemplars, computed anew after each task (algorithm 1)
    q_i^y                       outputs of a frozen copy of the model from before the task (algorithm 3)
    p_k                         herding (algorithm 4); the first chosen stay longest (algorithm 5)

All features are scaled to length 1, and so are their means: the nearest mean is the one of the largest cosine.

Departures (from the paper [p], from PyCIL's code [c]):
- Cross-entropy over all classes, plus distillation over the old ones with softmax at temperature 2 [c]; the paper has a
  sigmoid for each class and takes the old model's outputs as the targets of old classes [p].
- 170 epochs from a rate of 0.1 [c], against 70 from 2.0 [p]; the code's first task has 200, with a weight decay of
  5e-4 [c].
- Class means are those of the exemplars alone; some codes add mirrored copies of them.
- A class that comes back gets new exemplars out of the new images and the kept ones; its new row is held to the answers
  of the old one. Without a memory the trained classifier predicts, and there is only distillation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.memory.exemplars import Exemplars
from lamella.memory.resizable import Growing
from lamella.methods.method import Method
from lamella.methods.shared.classifier import train_weights
from lamella.methods.shared.distillation import distillation, frozen_copy
from lamella.methods.shared.heads import Heads, cosine_scores
from lamella.training.fit import Fit
from lamella.training.schedules import milestone_schedule

__all__ = ["ICaRL"]


class ICaRL(Growing, Method):
    """Distillation with exemplars, whose means classify.

    Args:
        backbone: of any kind; all of it is trained.
        memory: images kept of all classes together; 0 for none. memory_per_class: images kept of each class instead.
        choose: which: "herding" (the paper) or "random".
        temperature: of the distillation; above 1 it softens the outputs compared.
        epochs: of a task. first_epochs: of the first task; as `epochs` where left out.
        lr, batch_size, optimizer, momentum, weight_decay: of the backbone and all heads.
        milestones: shares of the epochs at which the learning rate falls to a tenth.
        head_start: "uniform" (torch's own) or "zero".
    """

    changes_backbone = True
    growing = ("means",)
    means: Tensor

    def __init__(
        self, backbone: Backbone, *, seed: int = 0, memory: int | None = 2000, memory_per_class: int | None = None,
        choose: str = "herding", temperature: float = 2.0, epochs: int = 170, first_epochs: int | None = None,
        lr: float = 0.1, batch_size: int = 128, optimizer: str = "sgd", momentum: float = 0.9,
        weight_decay: float = 2e-4, milestones: Sequence[float] = (0.47, 0.705), head_start: str = "uniform",
    ) -> None:  # fmt: skip
        super().__init__()
        if choose == "reservoir":
            raise ValueError("iCaRL needs exemplars of each class, which a reservoir does not promise; use 'herding'")
        self.backbone, self.seed, self.temperature = backbone, seed, temperature
        self.memory, self.memory_per_class, self.choose = memory, memory_per_class, choose
        self.epochs, self.first_epochs, self.lr, self.batch_size = epochs, first_epochs, lr, batch_size
        self.optimizer, self.momentum, self.weight_decay = optimizer, momentum, weight_decay
        self.milestones, self.schedule = milestones, milestone_schedule(milestones)
        self.head_start, self.heads = head_start, Heads(backbone.width, head_start, seed)
        self.exemplars = Exemplars(
            backbone.transform.size, total=memory, per_class=memory_per_class, choose=choose, seed=seed
        )
        self.register_buffer("means", torch.zeros(0, backbone.width))

    def classify(self, features: Tensor) -> Tensor:
        """(n, classes) cosines with the means of exemplars, -1..1; logits of the classifier without a memory."""
        return cosine_scores(features, self.means) if len(self.means) else self.heads(features)

    def linear_classifier(self) -> nn.Linear:
        return super().linear_classifier() if len(self.means) else self.heads.as_linear()

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        known = len(self.classes)
        teacher = frozen_copy(nn.Sequential(self.backbone, self.heads))
        data = self.exemplars.join(task.train, task.classes)
        self.heads.grow(task.classes)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            logits = self.heads(self.features(x))
            new = F.cross_entropy(logits, self.heads.columns(y))
            return new + distillation(logits[:, :known], teacher(x), self.temperature) if known else new

        train_weights(self, fit, data, loss, [*self.backbone.used_weights(), *self.heads.parameters()])
        self.exemplars.refill(data, self.features, fit, task.classes)
        self.means = self._means(fit)

    def _means(self, fit: Fit) -> Tensor:
        """(classes, d) mean of each class's exemplars, features of length 1; none where there is no memory."""
        if not len(self.exemplars):
            return self.means
        held = self.exemplars.as_set()
        unit = F.normalize(fit.features(held, self.features, name="means"), dim=1)
        return torch.stack([unit[held.labels == label].mean(0) for label in self.classes])
