"""Sequential fine-tuning: all weights are trained on task after task, and nothing prevents forgetting.

The classic demonstration of forgetting: McCloskey & Cohen, "Catastrophic Interference in Connectionist Networks",
1989. The method changes the backbone, so a stored model contains all of it.

Departures: each task trains its own head on its own classes; eval mode (no dropout, frozen batch-norm statistics).
"""

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.methods.shared.own_heads import OwnHeads
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["SeqFinetune"]


class SeqFinetune(OwnHeads):
    """Training of all weights on task after task.

    Args:
        backbone: the feature extractor, of any kind; all of its weights are trained.
        seed: the seed of every random draw.
        training: how the backbone, and with `head_lr` the task's head, are trained; see `Training`.
    """

    changes_backbone = True
    not_online = ""

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
