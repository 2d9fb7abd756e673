"""WA: training with exemplars and distillation, then new classifier rows are scaled to the length of old ones.

Zhao et al., "Maintaining Discrimination and Fairness in Class Incremental Learning", CVPR 2020, arXiv 1911.07053.
Public code read for settings: PyCIL (github.com/G-U-N/PyCIL).

A network that is trained on many new images and few old ones gets longer weight rows for the new classes, so it prefers
them. Distillation keeps the old classes apart from each other; the factor gamma removes the preference for new ones.

    paper                       here
    L_CE                        cross-entropy over all classes seen, on the task's images and the exemplars
    L_KD, T                     distillation over the older classes, with `temperature`
    lambda                      share of older classes among all; the loss is (1 - lambda) L_CE + lambda L_KD
    W_old, W_new                rows of the last heads that have the older classes, rows of the task's head
    gamma                       mean |w_old| / mean |w_new|; W_new <- gamma W_new (align_new_rows)
    weight clipping             positive_weights: no number of a row stays below 0 after a step

Departures (from the paper [p], from PyCIL's code [c]):
- PyCIL does not clip weights: `positive_weights=False` is its loss (equal to rounding over a training of two tasks). Up
  to 2023 it had L_CE + 2 L_KD at any number of classes, which `strength=2` gives [c]. The paper's lambda needs the
  paper's clipping; without it new classes are still preferred (docs/results.md).
- The first task has the weight decay and shares of epochs of later ones; the code's has 200 epochs with falls at 60,
  120 and 170 and a decay of 5e-4 [c].
- Heads start as torch's linear layers do; the code's are `head_start="kaiming"` [c]. A class that comes back gets a new
  row, which replaces its old one and counts as new.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.exemplars import Kept
from lamella.methods.shared.classifier import PYCIL, FromScratch, align_new_rows
from lamella.methods.shared.distillation import distillation, frozen_copy
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["WA"]


class WA(FromScratch):
    """Replay with distillation, weight clipping and weight alignment, with PyCIL's schedule and memory for CIFAR-100.

    Args:
        backbone: the feature extractor, of any kind; all of its weights are trained.
        seed: the seed of every random draw.
        training: how the backbone and all heads are trained; see `Training`.
        kept: how many images of old classes are kept, and which; see `Kept`.
        strength: a fixed weight of L_KD beside L_CE; at least 0. PyCIL had 2 before 2023. If left out, the weights are
            lambda and 1 - lambda, as in the paper.
        temperature: T, the temperature of the distillation; above 0. Above 1 it softens the outputs of both models.
        positive_weights: whether negative weights of the heads are set to 0 after each step.

    Raises:
        ValueError: a value is not allowed.
    """

    own_meanings = frozenset({"strength"})

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = replace(PYCIL, epochs=170, milestones=(0.35, 0.585, 0.82)),
        kept: Kept = Kept(),
        strength: float | None = None,
        temperature: float = 2.0,
        positive_weights: bool = True,
    ) -> None:
        super().__init__(backbone, seed, training, kept)
        if strength is not None and strength < 0:
            raise ValueError(f"strength {strength} is below 0; 2 is usual; leave it out for the paper's lambda")
        self.strength = strength
        self.temperature = temperature
        self.positive_weights = positive_weights

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        known, older = len(self.classes), set(self.classes) - set(task.classes)
        teacher = frozen_copy(nn.Sequential(self.backbone, self.heads))
        data = self.exemplars.join(task.train, task.classes)
        self.heads.grow(task.classes)
        share = len(older) / len(self.classes)  # lambda
        weights = (1 - share, share) if self.strength is None else (1.0, self.strength)

        def loss(x: Samples, y: Tensor) -> Tensor:
            logits = self.heads(self.features(x))
            right = F.cross_entropy(logits, self.heads.columns(y))
            if not known:
                return right
            as_before = distillation(logits[:, :known], teacher(x), self.temperature)
            return weights[0] * right + weights[1] * as_before

        clip = self._clip if self.positive_weights else None
        self.train_weights(fit, data, loss, self.backbone.used_weights(), after_step=clip)
        align_new_rows(self.heads)
        self.exemplars.refill(data, self.features, fit, task.classes)

    @torch.no_grad()
    def _clip(self) -> None:
        for i in range(len(self.heads)):
            self.heads[i].weight.clamp_(min=0)
