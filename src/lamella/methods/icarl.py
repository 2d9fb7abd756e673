"""iCaRL: exemplars chosen by herding, distillation from the model before, and the nearest mean of exemplars.

Rebuffi, Kolesnikov, Sperl & Lampert, "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, arXiv
1611.07725. Public code read for the softmax form and for settings: PyCIL (github.com/G-U-N/PyCIL).

    paper                       here
    phi                         features
    P_y, K, m = K / t           exemplars of class y, memory, Exemplars.quota
    mu_y                        means: of the class's exemplars, computed anew after each task (algorithm 1)
    q_i^y                       outputs of a frozen copy of the model as it was before the task (algorithm 3)
    p_k                         herding (algorithm 4); the first chosen stay longest (algorithm 5)

All features are scaled to length 1, and so are their means: the nearest mean is the one of the largest cosine.

Departures (from the paper [p], from PyCIL's code [c]):
- Cross-entropy over all classes, plus distillation over the old ones with softmax at temperature 2 [c]; the paper has a
  sigmoid for each class and takes the old model's outputs as the targets of old classes [p].
- 170 epochs from a rate of 0.1 [c], against 70 from 2.0 [p]; the code's first task has 200, with falls at 60, 120 and
  170 of them and a weight decay of 5e-4 [c].
- Heads start as torch's linear layers do; the code's are `head_start="kaiming"` [c].
- Class means are those of the exemplars alone; some codes add mirrored copies of them.
- A class that comes back gets new exemplars out of the new images and the kept ones. Its new row is distilled from the
  outputs of its old row. If no images are kept, the trained heads classify, and only distillation is left.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.exemplars import Kept
from lamella.memory.resizable import Resizable
from lamella.methods.shared.classifier import PYCIL, FromScratch
from lamella.methods.shared.distillation import distillation, frozen_copy
from lamella.methods.shared.heads import cosine_scores
from lamella.methods.shared.plain_classifier import PlainClassifier
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["ICaRL"]


class ICaRL(Resizable, FromScratch):
    """Training with exemplars and distillation, and classification by the nearest mean of exemplars.

    Args:
        backbone: the feature extractor, of any kind; all of its weights are trained.
        seed: the seed of every random draw.
        training: how the backbone and all heads are trained; see `Training`.
        kept: how many images of old classes are kept, and which; see `Kept`. "reservoir" is not allowed.
        temperature: T, the temperature of the distillation; above 0. Above 1 it softens the outputs of both models.

    Raises:
        ValueError: a value is not allowed.
    """

    resizable = ("means",)
    means: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = replace(PYCIL, epochs=170, milestones=(0.47, 0.705)),
        kept: Kept = Kept(),
        temperature: float = 2.0,
    ) -> None:
        if kept.choose == "reservoir":
            raise ValueError("iCaRL needs exemplars of each class, which a reservoir does not promise; use 'herding'")
        super().__init__(backbone, seed, training, kept)
        self.temperature = temperature
        self.register_buffer("means", torch.zeros(0, backbone.width))

    def classify(self, features: Tensor) -> Tensor:
        """(n, classes) cosines with the means of exemplars, -1..1; the logits of the heads if no images are kept."""
        return cosine_scores(features, self.means) if len(self.means) else self.heads(features)

    def linear_classifier(self) -> nn.Linear:
        return super().linear_classifier() if len(self.means) else self.heads.as_linear()

    def plain_classifier(self) -> PlainClassifier:
        return PlainClassifier.of_means(self.means) if len(self.means) else super().plain_classifier()

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        known = len(self.classes)
        teacher = frozen_copy(nn.Sequential(self.backbone, self.heads))
        data = self.exemplars.join(task.train, task.classes)
        self.heads.grow(task.classes)

        def loss(x: Samples, y: Tensor) -> Tensor:
            logits = self.heads(self.features(x))
            new = F.cross_entropy(logits, self.heads.columns(y))
            return new + distillation(logits[:, :known], teacher(x), self.temperature) if known else new

        self.train_weights(fit, data, loss, self.backbone.used_weights())
        self.exemplars.refill(data, self.features, fit, task.classes)
        self.means = self._means(fit)

    def _means(self, fit: Fit) -> Tensor:
        """(classes, d) mean of the unit-length features of each class's exemplars; empty if no images are kept."""
        if not len(self.exemplars):
            return self.means
        held = self.exemplars.as_set()
        unit = F.normalize(fit.features(held, self.features, name="means"), dim=1)
        return torch.stack([unit[held.labels == label].mean(0) for label in self.classes])
