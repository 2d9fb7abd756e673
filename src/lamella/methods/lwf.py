"""LwF: while new classes are learned, the old heads keep their outputs on the new images. No image is kept.

Li & Hoiem, "Learning without Forgetting", ECCV 2016, arXiv 1606.09282. Public code read for the form without
given tasks and for settings: PyCIL (github.com/G-U-N/PyCIL).

    paper                       here
    theta_s                     the backbone, trained from its start
    theta_o, theta_n            the heads of older tasks, the task's own head
    Y_o                         outputs of the old heads of a frozen copy of the model as it was before the task
    L_new                       cross-entropy among the task's classes
    L_old, T                    distillation over all older classes, with `temperature`
    lambda_o                    strength

The loss of a task is lambda_o L_old + L_new; the first task has L_new alone.

Departures (from the paper [p], from PyCIL's code [c]):
- At test time all heads stand side by side (class-incremental) [c]; the paper's tests name the task [p].
- lambda_o is 3 [c], where the paper mostly takes 1 [p].
- Y_o is computed anew for each augmented image [c], not once before training [p]; no warm-up of the new head alone [c].
- L_old spans all older classes as one softmax [c], not one for each older task [p].
- The first task has the weight decay and shares of epochs of later ones; the code's has 200 epochs with falls at 60,
  120 and 160 and a decay of 5e-4 [c].
- Heads start as torch's linear layers do; the code's are `head_start="kaiming"` [c]. A class that comes back gets a new
  row, which is distilled from the outputs of the old row.
"""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.methods.shared.classifier import PYCIL, FromScratch
from lamella.methods.shared.distillation import distillation, frozen_copy
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["LwF"]


class LwF(FromScratch):
    """Fine-tuning of all weights with distillation of the older heads, with PyCIL's settings for CIFAR-100.

    Args:
        backbone: the feature extractor, of any kind; all of its weights are trained.
        seed: the seed of every random draw.
        training: how the backbone and all heads are trained; see `Training`.
        strength: lambda_o, the weight of the distillation loss; at least 0, and 0 is plain fine-tuning.
        temperature: T, the temperature of the distillation; above 0. Above 1 it softens the outputs of both models.

    Raises:
        ValueError: a value is not allowed.
    """

    own_meanings = frozenset({"strength"})

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = replace(PYCIL, epochs=250, milestones=(0.24, 0.48, 0.72, 0.88)),
        strength: float = 3.0,
        temperature: float = 2.0,
    ) -> None:
        super().__init__(backbone, seed, training)
        if strength < 0:
            raise ValueError(f"strength {strength} is below 0; PyCIL's is 3, the paper's 1, and 0 is fine-tuning")
        self.strength = strength
        self.temperature = temperature

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        known = len(self.classes)
        teacher = frozen_copy(nn.Sequential(self.backbone, self.heads))
        head = self.heads.grow(task.classes)

        def loss(x: Samples, y: Tensor) -> Tensor:
            features = self.features(x)
            new = F.cross_entropy(head(features), head.columns(y))
            if not known:
                return new
            old = distillation(self.heads(features)[:, :known], teacher(x), self.temperature)
            return self.strength * old + new

        self.train_weights(fit, task.train, loss, self.backbone.used_weights())
