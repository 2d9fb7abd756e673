"""Nearest class mean on frozen features, by cosine: the reference that trains nothing.

Mensink et al., "Distance-Based Image Classification", TPAMI 2013; as a baseline for pre-trained models: Zhou et al.,
"Revisiting Class-Incremental Learning with Pre-Trained Models" (SimpleCIL), IJCV 2024, arXiv 2303.07338.

Departures: none. If a class comes back, its mean is that of all its images.
"""

from collections.abc import Sequence

from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.methods.shared.class_means import ClassMeans
from lamella.methods.shared.statistics import add_features
from lamella.training.fit import Fit

__all__ = ["NearestMean"]


class NearestMean(ClassMeans):
    """Classification by the cosine between an image's features and the mean features of each class.

    Args:
        backbone: the feature extractor, of any kind; it is not changed.
        seed: the seed of every random draw; this method makes none.
    """

    federates = True
    not_online = ""

    def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
        super().__init__(backbone, seed)

    def merge_classes(self, source: int, target: int) -> None:
        self.statistics.merge(source, target)

    def drop_class(self, label: int) -> None:
        self.statistics.drop(label)

    def traces_of(self, number: int, counts: Sequence[int]) -> str:
        return ""

    def take_out(self, features: Tensor, labels: Tensor, right: Tensor | None = None, gone: Sequence[int] = ()) -> None:
        self.statistics.take_out(features, labels, right)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        features = fit.features(task.train, self.features)
        add_features(self.statistics, fit, features, task.train.labels, task.classes, name="statistics")
