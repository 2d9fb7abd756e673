"""A linear head a task on frozen features: what training the heads alone gives.

The usual linear evaluation (for instance Chen et al., SimCLR, ICML 2020, arXiv 2002.05709, section 4.2) turned into a
stream: each task trains its own head on its own classes, as the low-rank methods here do.

Departures: features are computed once, without augmentation.
"""

from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.images import TensorSet
from lamella.data.scenario import Task
from lamella.methods.shared.own_heads import OwnHeads
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["LinearProbe"]


class LinearProbe(OwnHeads):
    """One linear head a task, trained on cached features.

    Args:
        backbone: of any kind; it stays as it is.
        seed: of all draws.
        training: see `Training`; of the task's head.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = Training(epochs=50, lr=1e-2, schedule="inflora"),
    ) -> None:
        super().__init__(backbone, seed, training)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        data = TensorSet(fit.features(task.train, self.features), task.train.labels)
        self.train_head(task, fit, data=data, features=_as_they_are)

    def forget(self, number: int) -> None:
        """Drop a task's head; no other tensor knew of the task."""
        self.heads.drop(number)


def _as_they_are(features: Tensor) -> Tensor:
    return features
