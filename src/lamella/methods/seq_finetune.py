"""Sequential fine-tuning: every weight of the backbone, task after task, with nothing against forgetting.

The classic demonstration of forgetting: McCloskey & Cohen, "Catastrophic Interference in Connectionist Networks",
1989. Changes the backbone, so all of it is stored.

Departures: each task trains its own head on its own classes; eval mode (no dropout, frozen batch-norm statistics).
"""

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.methods.shared.own_heads import OwnHeads
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["SeqFinetune"]


class SeqFinetune(OwnHeads):
    """All weights, trained on.

    Args:
        backbone: of any kind; all of it is trained.
        seed: of all draws.
        training: see `Training`; of the backbone, and with its `head_lr` of the task's head.
    """

    changes_backbone = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = Training(lr=5e-5, head_lr=5e-4, schedule="inflora-code"),
    ) -> None:
        super().__init__(backbone, seed, training)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        self.train_head(task, fit, self.backbone.used_weights())
