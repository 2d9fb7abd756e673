"""A linear head for each task on frozen features: the reference that trains nothing but heads.

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
    """One linear head for each task, trained on features that are computed once.

    Args:
        backbone: the feature extractor, of any kind; it is not changed.
        seed: the seed of every random draw.
        training: how the task's head is trained; see `Training`.
    """

    not_online = ""

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
        """Remove a task's head; no other tensor depends on the task.

        Args:
            number: the place of the task in the order of learning, from 0.
        """
        self.heads.drop(number)


def _as_they_are(features: Tensor) -> Tensor:
    return features
