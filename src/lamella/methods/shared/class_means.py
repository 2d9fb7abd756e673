"""The base class of methods that name the class whose mean is nearest by the cosine."""

from torch import Tensor

from lamella.backbones import Backbone
from lamella.memory.gaussians import ClassGaussians
from lamella.methods.method import Method
from lamella.methods.shared.heads import cosine_scores
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = ["ClassMeans"]


class ClassMeans(Method):
    """A method that classifies by the cosine between features and the mean features of each class.

    Args:
        backbone: the feature extractor.
        seed: the seed of every random draw.

    Attributes:
        statistics: the means; `learn` adds the features of its task.
    """

    def __init__(self, backbone: Backbone, seed: int) -> None:
        super().__init__()
        self.backbone, self.seed = backbone, seed
        self.statistics = ClassGaussians(backbone.width)

    @property
    def classes(self) -> tuple[int, ...]:
        return self.statistics.classes

    def classify(self, features: Tensor) -> Tensor:
        """(n, classes) cosines with the class means, -1..1."""
        return cosine_scores(features, self.statistics.means.to(features))

    def typicality(self, features: Tensor, logits: Tensor) -> Tensor:
        """(n,) the cosine to the nearest class mean, -1..1."""
        return logits.amax(1)

    def plain_classifier(self) -> PlainClassifier:
        return PlainClassifier.of_means(self.statistics.means.float())
