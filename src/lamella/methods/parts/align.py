"""Alignment: makes heads comparable that were never trained against each other, without any old image.

A replay-free method trains the head of each task alone, so in the end most errors are a wrong task. This part keeps the
mean of the features of every class, the number of its images, and one shared scatter. It moves means and scatter as the
features drift, and classifies with them.

Sources: Fisher's discriminant in streaming form: Hayes & Kanan, CVPR-W 2020, arXiv 1909.01520. Heads re-fitted on
samples of class Gaussians: Zhang et al., SLCA, ICCV 2023, arXiv 2303.05118. Drift of stored means: Yu et al., "Semantic
Drift Compensation", CVPR 2020, arXiv 2004.00440; as a learned map: Gomez-Villa et al., ECCV 2024, arXiv 2407.08536.
Own covariances of low rank (LR-RGDA) and local drift (HopDC): specification from a public reading of the authors' code,
github.com/raoxuan98-hash/lr_rgda_hopdc, 2026.

    symbol          here
    mu_c, n_c       statistics.means, statistics.counts
    S               statistics.covariance: within-class scatter over all images seen
    l               shrinkage
    S_c             own_covariance = a > 0: (1 - a) x shrunk S + a x the class's own covariance, of which
                    own_directions are kept, see memory/low_rank.py
    (c, i)          with `means` = m > 0 a class has m Gaussians from each task that brings it; its score is the highest
    nu              own_covariance_prior: a = n_c / (n_c + nu), the posterior mean of S_c where S counts as nu images
    k               ridge x the mean diagonal of the centred Gram matrix
    I + W           the drift map
    p               drift_prior: features move by n / (n + p) of it
    (k_i, v_i)      drift = "local": a new image's features before, of length 1, and how far they moved; LocalDrift

Departures:
- From SLCA, for `head="refit"`: SLCA keeps a covariance per class, to which it adds 1e-4 I, and scales logits by
  their norm; here samples share the shrunk covariance. SLCA multiplies the means of older tasks by 0.9 to 1 by their
  age, goes on from the trained heads, draws samples anew in each of 5 epochs, and has a weight decay of 5e-4; here
  means stay as they are, and a new head is trained on one draw for 10 epochs without decay.
- From SDC, for `drift="mean"`: SDC weighs the shift of each image by its distance to the class mean; here all means
  move by the mean shift.
- From LR-RGDA: it has 64 directions by a randomised decomposition, the covariance 0.2 S_c + 2.0 S + 0.5 I, and keeps
  nothing of what it cuts off; here 8 exact ones, (1 - a) S + a S_c with S shrunk, and the trace of S_c is kept.
- From HopDC, for `drift="local"`: it moves 2,000 draws of each class's own covariance; here the draws are the same for
  all classes and standardised, so that without drift nothing changes, and at least twice as many as they have numbers.
  Classes with no whole covariance of their own draw from the shared one, and directions move by draws of their own.
  No unlabelled images, no random Fourier features. Samples that are held back move by the map itself.
- `compete` and `drift_prior` are our own; for the former see shared/pseudo_replay.py.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lamella.common.checks import check_one_of
from lamella.data.scenario import Task
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.memory.mixtures import ClassMixtures
from lamella.methods.method import STATISTICS_GO_ON, Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.parts.competing import competing, trains_heads
from lamella.methods.parts.drift import check_drift, follow_task
from lamella.methods.parts.own_covariances import check_own
from lamella.methods.parts.refit import refitted_head
from lamella.methods.shared.heads import Heads, linear_layer
from lamella.methods.shared.plain_classifier import PlainClassifier
from lamella.methods.shared.refusals import SHARED
from lamella.methods.shared.statistics import add_features
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["Aligned"]


class Aligned(MethodOnBase):
    """A method on top of another one, which classifies by drift-compensated class statistics of the features.

    Args:
        base: any method whose features keep their width; it learns exactly as it would alone.
        seed: the seed of every random draw.
        shrinkage: l, the share of a multiple of the identity in the shared covariance; above 0, at most 1.
        ridge: the strength of the regularisation of the drift map; above 0.
        drift: how the statistics of old classes follow the drift of the features: "affine" (by an affine map), "mean"
            (by a shift), "local" (each part of a class as the new images most like it; slower) or "none" (they do
            not).
        drift_prior: how many images without drift the n images of a task are weighed against: statistics follow
            n / (n + drift_prior) of the drift that they show; at least 0. For many tasks of few images, of which each
            says little about the classes before it.
        own_covariance: the share of each class's own covariance in its Gaussian (Friedman 1989); from 0 to below 1. At
            0 all classes have the shared covariance. It suits classes with about equal numbers of images: the own
            covariance of a class with few images is narrow by chance, so that this class is predicted too rarely.
        own_covariance_prior: used in place of `own_covariance` if the classes have unequal numbers of images; above 0.
            A class with this number of images has equal shares of its own and of the shared covariance, classes with
            more images a larger share of their own.
        own_directions: how many directions of its own covariance a class keeps, at least 1: d numbers each, and one
            for the rest of them. "all" keeps the whole covariance, d x d numbers for each class. Without own
            covariances nothing of the kind is kept.
        means: how many means a class gets each time that images of it come, found by k-means of their features; 0 keeps
            one mean of all of them. It suits the same classes in other domains. Not for head "refit".
        head: how images are classified: "lda" (a linear discriminant with the shrunk covariance) or "refit" (a linear
            head that is trained on samples of the class Gaussians).
        samples: how many samples of each class the re-fitted head is trained on; at least 1.
        epochs: how many times the re-fitted head sees each sample; at least 1.
        lr: the learning rate of the re-fitted head at the start; above 0. It falls towards 0 on a cosine.
        compete: whether the classes of a new task compete with draws of the old ones while the base is trained, so that
            its heads become one head over all classes (readout "base"). For a base that trains a linear head for each
            task and is not routed, and with `means` 0.

    Raises:
        ValueError: a value is not allowed, or the features of the base widen with each task.
    """

    own_calls = ("align-",)
    reads_features = True

    def __init__(
        self,
        base: Method,
        *,
        seed: int = 0,
        shrinkage: float = 0.1,
        ridge: float = 3.0,
        drift: str = "affine",
        drift_prior: float = 0.0,
        own_covariance: float = 0.0,
        own_covariance_prior: float | None = None,
        own_directions: int | Literal["all"] = 8,
        means: int = 0,
        head: str = "lda",
        samples: int = 256,
        epochs: int = 10,
        lr: float = 1e-2,
        compete: bool = False,
    ) -> None:
        super().__init__(base, seed)
        if base.widens:
            name = type(base).__name__
            raise ValueError(f"alignment needs features of one width; those of {name} widen with each task")
        check_one_of("head", head, ("lda", "refit"))
        check_own(own_covariance, own_covariance_prior, own_directions, head)
        self.shrinkage, self.ridge, self.drift, self.drift_prior = shrinkage, ridge, drift, drift_prior
        self.own_covariance = own_covariance
        self.own_covariance_prior = own_covariance_prior
        self.own_directions = own_directions
        self.head, self.samples = head, samples
        self.refitting = Training(epochs, lr, batch_size=256, optimizer="sgd", momentum=0.9, schedule="cosine")
        check_drift(drift, ridge, drift_prior)  # this and `shrunk` refuse bad values before anything is learned
        shrunk(torch.eye(1), shrinkage)
        if means < 0 or (means and head == "refit"):
            raise ValueError(f"means {means} must be a whole number from 0, and 0 for head 'refit'")
        self.means = means
        if compete and (means or not trains_heads(base)):
            raise ValueError(
                "compete needs means 0 and a method that trains a linear head for each task on features of one "
                "network, such as inflora or seq-lora; leave it out"
            )
        self.compete = compete
        asks = {"head": head == "refit", "drift": drift == "local", "means": means > 0, "compete": compete}
        asks |= {"own_covariance": own_covariance > 0, "own_covariance_prior": own_covariance_prior is not None}
        self.beyond_sums = tuple(f"{name} = {getattr(self, name)!r}" for name, more in asks.items() if more)
        self.federates = base.federates and not self.beyond_sums
        directions = None if own_directions == "all" else own_directions
        mixed = partial(ClassMixtures, means=means, seed=seed) if means else ClassGaussians
        self.statistics: ClassGaussians = mixed(base.backbone.width, per_class=self.quadratic, directions=directions)
        self.refitted = Heads(base.backbone.width)

    @staticmethod
    def unstored(table: Mapping[str, object]) -> dict[str, object]:
        """What a stored table lacks: versions before `own_directions` kept whole covariances."""
        own = table.get("own_covariance") or table.get("own_covariance_prior")
        return {"own_directions": "all"} if own else {}

    @property
    def classes(self) -> tuple[int, ...]:
        return self.statistics.classes

    @property
    def quadratic(self) -> bool:
        """Whether each class has its own covariance."""
        return self.own_covariance > 0 or self.own_covariance_prior is not None

    def classify(self, features: Tensor) -> Tensor:
        """(n, classes) discriminant scores, or logits of the re-fitted head."""
        if self.head == "refit":
            return self.refitted(features)
        if self.quadratic:
            return self.statistics.quadratic_discriminant(features, self.shrinkage, *self._shares)
        return self.statistics.linear_discriminant(features, self.shrinkage)

    @property
    def _shares(self) -> tuple[float, float | None]:
        return self.own_covariance, self.own_covariance_prior

    def typicality(self, features: Tensor, logits: Tensor) -> Tensor:
        """(n,) scores that are low far from all class means; see `ClassGaussians.strangeness`."""
        return -self.statistics.strangeness(features, self.shrinkage)

    @property
    def features_stay(self) -> bool:
        return self.base.features_stay

    def linear_classifier(self) -> nn.Linear:
        if self.quadratic:
            raise ValueError("its classes have covariances of their own, which no linear layer holds")
        if self.means:
            raise ValueError("its classes have several means, which no linear layer holds")
        if self.head == "refit":
            return self.refitted.as_linear()
        return linear_layer(*self.statistics.hyperplanes(self.shrinkage))

    def plain_classifier(self) -> PlainClassifier:
        if not self.quadratic or self.means or self.own_directions == "all":
            return super().plain_classifier()
        weight, bias, curves = self.statistics.low_rank_discriminant(self.shrinkage, *self._shares)
        return PlainClassifier(weight, bias, curves=curves)

    def what_more_images_do(self) -> str:
        return STATISTICS_GO_ON.format(noun=self.backbone.transform.noun)

    def merge_classes(self, source: int, target: int) -> None:
        self._check_no_refit()
        self.base.merge_classes(source, target)
        self.statistics.merge(source, target)

    def drop_class(self, label: int) -> None:
        self._check_no_refit()
        if not self.quadratic:
            raise ValueError(SHARED)
        self.base.drop_class(label)
        self.statistics.drop(label)

    def traces_of(self, number: int, counts: Sequence[int]) -> str:
        traces = self.base.traces_of(number, counts)
        if not traces and (self.head == "refit" or self.means or self.statistics.low_rank is not None):
            return "alignment keeps more of them than sums (a head that is trained, parts by k-means, or directions)"
        return traces

    def take_out(self, features: Tensor, labels: Tensor, right: Tensor | None = None, gone: Sequence[int] = ()) -> None:
        self.base.take_out(features, labels, right, gone)
        self.statistics.take_out(features, labels, right)

    def _check_no_refit(self) -> None:
        if self.head == "refit":
            raise ValueError("classes cannot be merged or dropped: the re-fitted head was trained on them")

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        known = len(self.classes) > 0
        # The experts of a routed method do not change, so the new task's images would show a drift that is none.
        moves = self.drift != "none" and known and not self.routed
        competes = self.compete and known
        before = fit.features(task.train, self.features, name="align-before") if moves or competes else None
        with competing(self.base, self.statistics, self.shrinkage, before if competes else None, task):
            self.base.learn(task, fit)
        self.eval()
        after = fit.features(task.train, self.features, name="align-after")
        if before is not None and moves:
            follow_task(self.statistics, fit, before, after, self.drift, self.ridge, self.drift_prior, self.seed)
        add_features(self.statistics, fit, after, task.train.labels, task.classes, name="align-statistics")
        if self.head == "refit":
            self.refitted = refitted_head(self.statistics, self.shrinkage, self.samples, self.refitting, fit, self.seed)
