"""A linear head a task on frozen features: what training the heads alone gives.

The usual linear evaluation (for instance Chen et al., SimCLR, ICML 2020, arXiv 2002.05709, section 4.2) turned into a
stream: each task trains its own head on its own classes, as the low-rank methods here do.

Departures: features are computed once, without augmentation.
"""

import torch.nn.functional as F
from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.images import TensorSet
from lamella.data.scenario import Task
from lamella.methods.method import Method
from lamella.methods.shared.heads import Heads
from lamella.training.fit import Fit
from lamella.training.schedules import named_schedule

__all__ = ["LinearProbe"]


class LinearProbe(Method):
    """One linear head a task, trained on cached features.

    Args:
        epochs, lr, batch_size, optimizer, schedule: of the head's training.
        head_start: "uniform" (torch's own) or "zero", better on features of large norm.
    """

    def __init__(
        self, backbone: Backbone, *, seed: int = 0, epochs: int = 50, lr: float = 1e-2, batch_size: int = 128,
        head_start: str = "uniform", optimizer: str = "adam", schedule: str = "as_meant",
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.seed = backbone, seed
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.head_start, self.optimizer, self.schedule = head_start, optimizer, named_schedule(schedule)
        self.heads = Heads(backbone.width, head_start, seed)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        head = self.heads.grow(task.classes)
        data = TensorSet(fit.features(task.train, self.features), task.train.labels)

        def loss(f: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(head(f), head.columns(y))

        fit(data, loss, head.parameters(), epochs=self.epochs, lr=self.lr, batch_size=self.batch_size,
            optimizer=self.optimizer, schedule=self.schedule)  # fmt: skip

    def forget(self, number: int) -> None:
        """Drop a task's head; no other tensor knew of the task."""
        self.heads.drop(number)
