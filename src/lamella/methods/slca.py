"""SLCA: all weights are trained slowly and heads fast; then the heads are aligned on samples of class Gaussians.

Zhang, Wang, Kang, Chen & Wei, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained
Model", ICCV 2023, arXiv 2303.05118. Authors' code: github.com/GengDavid/SLCA, read at commit 1511c1d on 2026-11-30;
over three tasks with the same draws it gives the same numbers (docs/verified.md). Of the paper we had public summaries.
SLCA++, which the repository has too (low-rank branches, a symmetric cross-entropy, scaled features), is not this.

A small learning rate lets the pre-trained weights move only a little with each task, so features of old classes stay
usable. What is lost then is mostly a wrong choice among heads that were never trained against each other. So the mean
and the covariance of each class's features are kept, and after each task all heads train on samples of these Gaussians.

    paper                       here
    theta_rps, its rate         the backbone, `lr`
    theta_cls, its rate         the heads, `head_lr`
    mu_c, Sigma_c               kept.statistics.means; S_c / (n_c - 1) + `COVARIANCE_FLOOR` I
    S_c (samples of a class)    samples
    tau                         temperature of the logit normalisation
    t_c, T                      number of the head that learned class c, number of heads, both from 1

Learning of task T:

1. Slow learner: cross-entropy among the task's own classes trains backbone (`lr`) and the new head (`head_lr`).
2. Statistics: mu_c and Sigma_c of the task's classes, from its samples without augmentation. Older ones stay.
3. Classifier alignment, from the second task on: `samples` draws of N(mu_c (0.9 + 0.1 t_c / T), Sigma_c) of each class;
   all heads train on them by the cross-entropy of h / (tau m), where h are the logits of all classes, and m is the mean
   over tasks of the norm of h within the task's classes.

Predictions are the plain logits h. The next task begins with the heads as they were before alignment, as in the code.

Departures (from the authors' code [c], from the paper [p]):
- Alignment draws its samples once and sees them in each of its epochs; the code draws anew in each epoch [c].
- Heads start as torch's linear layers do, weights and biases; the code's weights are normal with a deviation of 0.02,
  cut at 2, and its biases zero [c].
- Eval mode while training; the code's networks have neither dropout nor batch norm that it would change [c].
- The fall of the learning rates is a share of the epochs: 0.9, which is the code's epoch 18 of 20 for CIFAR-100 [c].
  For ImageNet-R and CUB-200 the code has 50 epochs and a fall after 40: `epochs = 50`, `milestones = [0.8]`.
- The age of a class comes from the head that learned it; the code divides its number by the size of the latest task,
  which is the same for tasks of one size [c].
- A class that comes back, which the source does not have, is learned anew: its Gaussian and its row are those of the
  latest task that had it.
- A class with one sample has the covariance `COVARIANCE_FLOOR` I; the code's is not a number [c].
- The covariance of each class is kept in float32 [c].
- Step 3 is by the code where the paper's formula reads otherwise: m is the mean of the tasks' norms, not one norm [p].
"""

from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.data.scenario import Task
from lamella.memory.gaussians import ClassGaussians
from lamella.memory.resizable import Resizable
from lamella.methods.shared.heads import Heads
from lamella.methods.shared.own_heads import OwnHeads
from lamella.methods.shared.pseudo_features import pseudo_features, roots_of
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["SLCA", "aged_scales", "normalised_logits"]

COVARIANCE_FLOOR = 1e-4
"""The multiple of the identity that is added to each class's covariance."""

SLOW = Training(
    epochs=20,
    lr=1e-4,
    head_lr=1e-2,
    optimizer="sgd",
    momentum=0.9,
    weight_decay=5e-4,
    schedule="milestones",
    milestones=(0.9,),
)
"""The settings of the authors' code for CIFAR-100."""
ALIGNING = Training(optimizer="sgd", momentum=0.9, weight_decay=5e-4, schedule="cosine")


class KeptForAlignment(Resizable):
    """What the alignment after the next task needs, and predictions do not.

    Attributes:
        statistics: the Gaussian of each class.
        heads: the heads as they were trained, before alignment.
    """

    for_training = True

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.statistics = ClassGaussians(heads.width, per_class=True)
        self.heads = heads


class SLCA(OwnHeads):
    """SLCA, by default with the settings of the authors' code for CIFAR-100.

    Args:
        backbone: the feature extractor, of any kind; all of its weights are trained.
        seed: the seed of every random draw.
        training: how the backbone, with the slow rate `lr`, and the task's head, with `head_lr`, are trained; see
            `Training`. Alignment has SGD with momentum 0.9 and a weight decay of 5e-4 in any case.
        align_epochs: how many times alignment sees each of its samples; at least 0, and 0 leaves alignment out.
        align_lr: the learning rate of alignment at the start; above 0. It falls towards 0 on a cosine.
        samples: how many samples of each class alignment draws, and how many it takes in a step; at least 1.
        temperature: tau, by which normalised logits are divided; above 0. If left out, logits are not normalised.
        oldest: the factor of the mean of a class that is infinitely old, 0.9 in the source; above 0, at most 1. The
            factor of the latest classes is 1, and between them it is linear in t_c / T.

    Raises:
        ValueError: a value is not allowed.
    """

    changes_backbone = True
    own_meanings = frozenset({"temperature"})

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = SLOW,
        align_epochs: int = 5,
        align_lr: float = 1e-2,
        samples: int = 256,
        temperature: float | None = 0.1,
        oldest: float = 0.9,
    ) -> None:
        super().__init__(backbone, seed, training)
        if align_epochs < 0:
            raise ValueError(f"align_epochs {align_epochs} must be at least 0, and 0 leaves the heads alone")
        if samples < 1:
            raise ValueError(f"samples {samples} must be at least 1")
        if not align_lr > 0:
            raise ValueError(f"align_lr {align_lr} must be above 0")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature {temperature} must be above 0; leave it out for plain logits")
        if not 0 < oldest <= 1:
            raise ValueError(f"oldest {oldest} is outside (0, 1]; the source has 0.9, and 1 leaves means as they are")
        self.aligning = replace(ALIGNING, epochs=max(align_epochs, 1), lr=align_lr, batch_size=samples)
        self.align_epochs = align_epochs
        self.samples = samples
        self.temperature = temperature
        self.oldest = oldest
        self.kept = KeptForAlignment(deepcopy(self.heads))

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        self.heads = deepcopy(self.kept.heads)
        self.train_head(task, fit, self.backbone.used_weights())
        self.kept.heads = deepcopy(self.heads)
        self._add_statistics(task, fit.features(task.train, self.features, name="statistics"))
        if len(self.heads) > 1 and self.align_epochs:
            self._align(fit)

    def _add_statistics(self, task: Task, features: Tensor) -> None:
        statistics = self.kept.statistics
        for label in set(task.classes) & set(statistics.classes):
            statistics.drop(label)
        statistics.add(features, task.train.labels, task.classes)

    def _align(self, fit: Fit) -> None:
        """Train all heads on samples of all classes' Gaussians."""
        statistics, heads = self.kept.statistics, self.heads
        owner = {c: number for number in range(len(heads)) for c in heads[number].classes}  # the last head that has it
        means = aged_scales([owner[c] for c in statistics.classes], self.oldest).to(statistics.means)
        x = pseudo_features(
            statistics.means * means[:, None],
            roots_of(statistics.scatters, statistics.counts, COVARIANCE_FLOOR),
            self.samples,
            generator(self.seed, "slca", "samples", len(heads)),
        )
        tasks = torch.tensor([owner[c] for c in heads.classes], device=x.device)

        def loss(f: Tensor, y: Tensor) -> Tensor:
            logits = heads(f)
            if self.temperature is not None:
                logits = normalised_logits(logits, tasks, self.temperature)
            return F.cross_entropy(logits, heads.columns(y))

        y = statistics.ids.repeat_interleave(self.samples)
        fit(TensorSet(x, y), loss, heads.parameters(), self.aligning, name="align")


def aged_scales(tasks: list[int], oldest: float) -> Tensor:
    """Return (c,) float64, the factors of the means of classes: oldest + (1 - oldest) t_c / T.

    Args:
        tasks: t_c - 1, the number of the task that each class was learned in, from 0. The largest is T - 1.
        oldest: the factor of an infinitely old class.
    """
    t = torch.tensor(tasks, dtype=torch.float64) + 1
    return oldest + (1 - oldest) * t / t.max()


def normalised_logits(logits: Tensor, tasks: Tensor, temperature: float) -> Tensor:
    """Return h / (temperature m), (n, c), with m the mean over tasks of the norm of h within the task's classes.

    Args:
        logits: h, (n, c).
        tasks: (c,), the number of the task that each column belongs to.
        temperature: tau; above 0.
    """
    norms = [logits[:, tasks == task].norm(dim=1) + 1e-7 for task in tasks.unique()]
    return logits / (temperature * torch.stack(norms, 1).mean(1, keepdim=True))
