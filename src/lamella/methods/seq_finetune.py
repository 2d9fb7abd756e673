"""Sequential fine-tuning: every weight of the backbone, task after task, with nothing against forgetting.

The classic demonstration of forgetting: McCloskey & Cohen, "Catastrophic Interference in Connectionist Networks",
1989. Changes the backbone, so all of it is stored.

Departures: each task trains its own head on its own classes; eval mode (no dropout, frozen batch-norm statistics).
"""

import torch.nn.functional as F
from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.methods.method import Method
from lamella.methods.shared.heads import Heads
from lamella.training.fit import Fit
from lamella.training.schedules import named_schedule

__all__ = ["SeqFinetune"]


class SeqFinetune(Method):
    """All weights, trained on.

    Args:
        lr: of the backbone. head_lr: of the task's head.
        epochs, batch_size, optimizer, schedule: as in the other methods.
        head_start: "uniform" (torch's own) or "zero", better on features of large norm.
    """

    changes_backbone = True

    def __init__(
        self, backbone: Backbone, *, seed: int = 0, epochs: int = 20, lr: float = 5e-5, head_lr: float = 5e-4,
        batch_size: int = 128, head_start: str = "uniform", optimizer: str = "adam", schedule: str = "as_run",
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.seed = backbone, seed
        self.epochs, self.lr, self.head_lr, self.batch_size = epochs, lr, head_lr, batch_size
        self.head_start, self.optimizer, self.schedule = head_start, optimizer, named_schedule(schedule)
        self.heads = Heads(backbone.width, head_start, seed)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        head = self.heads.grow(task.classes)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(head(self.features(x)), head.columns(y))

        groups = [{"params": self.backbone.used_weights()}, {"params": list(head.parameters()), "lr": self.head_lr}]
        fit(task.train, loss, groups, epochs=self.epochs, lr=self.lr, batch_size=self.batch_size,
            optimizer=self.optimizer, schedule=self.schedule)  # fmt: skip
