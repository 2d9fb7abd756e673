"""Streaming linear discriminant analysis on frozen features: class means and one shared covariance with shrinkage.

Hayes & Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR-W 2020,
arXiv 1909.01520.

    paper           here
    Lambda          memory.shrunk: (1 - l) S + l mean(diag S) I
    epsilon         shrinkage

Departures (from the paper [p], from the authors' code [c]):
- The covariance is shrunk towards its mean variance, not towards the identity [p, c], and by 0.1, not by 1e-4 [c],
  which is too little where there are few images for each of the d features.
- Within-class scatter is summed exactly over batches, which the running update approximates [p, c]. The code's update
  begins with a covariance of the first images that is shrunk by the OAS estimator [c].
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.memory.gaussians import ClassGaussians
from lamella.methods.method import Method
from lamella.methods.shared.heads import linear_layer
from lamella.methods.shared.refusals import SHARED
from lamella.methods.shared.statistics import add_features
from lamella.training.fit import Fit

__all__ = ["StreamingLDA"]


class StreamingLDA(Method):
    """Fisher's linear discriminant on frozen features.

    Args:
        backbone: the feature extractor, of any kind; it is not changed.
        seed: the seed of every random draw; this method makes none.
        shrinkage: the share of a multiple of the identity in the covariance; above 0, at most 1.
    """

    federates = True
    not_online = ""

    def __init__(self, backbone: Backbone, *, seed: int = 0, shrinkage: float = 0.1) -> None:
        super().__init__()
        self.backbone, self.seed, self.shrinkage = backbone, seed, shrinkage
        self.statistics = ClassGaussians(backbone.width)

    @property
    def classes(self) -> tuple[int, ...]:
        return self.statistics.classes

    def classify(self, features: Tensor) -> Tensor:
        """(n, classes) discriminant scores."""
        return self.statistics.linear_discriminant(features, self.shrinkage)

    def typicality(self, features: Tensor, logits: Tensor) -> Tensor:
        return -self.statistics.strangeness(features, self.shrinkage)

    def linear_classifier(self) -> nn.Linear:
        return linear_layer(*self.statistics.hyperplanes(self.shrinkage))

    def merge_classes(self, source: int, target: int) -> None:
        self.statistics.merge(source, target)

    def drop_class(self, label: int) -> None:
        raise ValueError(SHARED)

    def traces_of(self, number: int, counts: Sequence[int]) -> str:
        return ""

    def take_out(self, features: Tensor, labels: Tensor, right: Tensor | None = None, gone: Sequence[int] = ()) -> None:
        self.statistics.take_out(features, labels, right)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        features = fit.features(task.train, self.backbone)
        add_features(self.statistics, fit, features, task.train.labels, task.classes, name="statistics")
