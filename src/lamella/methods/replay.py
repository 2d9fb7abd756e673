"""Experience replay: all weights are trained on the new images and on a few kept images of each old class.

Rolnick, Ahuja, Schwarz, Lillicrap & Wayne, "Experience Replay for Continual Learning", NeurIPS 2019, arXiv 1811.11682;
Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, arXiv 1902.10486. Public code read for the
form with epochs, and for settings: PyCIL (github.com/G-U-N/PyCIL).

    paper                       here
    M (episodic memory)         exemplars
    mem_sz                      memory, or memory_per_class
    ring buffer, reservoir      choose: "herding", "random" or "reservoir"

The loss of a task is cross-entropy over all classes seen, on the task's images and the memory as one set.

Departures (from the papers [p], from PyCIL's code [c]):
- A task is trained for epochs over the union, as PyCIL does; the papers see each image once, and draw as many from the
  memory with each batch as the batch has new ones [p].
- The memory is filled when a task is finished [c], not while images stream by [p]; herding by default [c].
- 170 epochs with falls at 0.47 and 0.705 of them, as for the other methods with exemplars; the code has 70, with falls
  at 30 and 50, and for the first task 200 with falls at 60, 120 and 170 and a weight decay of 5e-4 [c].
- Heads start as torch's linear layers do; the code's are `head_start="kaiming"` [c].
- A class that comes back gets a new row in the classifier, which replaces its old one.
"""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.exemplars import Kept
from lamella.methods.shared.classifier import PYCIL, FromScratch
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["Replay"]


class Replay(FromScratch):
    """Training of all weights on the new images and the kept ones.

    Args:
        backbone: the feature extractor, of any kind; all of its weights are trained.
        seed: the seed of every random draw.
        training: how the backbone and all heads are trained; see `Training`.
        kept: how many images of old classes are kept, and which; see `Kept`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = replace(PYCIL, epochs=170, milestones=(0.47, 0.705)),
        kept: Kept = Kept(),
    ) -> None:
        super().__init__(backbone, seed, training, kept)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        data = self.exemplars.join(task.train, task.classes)
        self.heads.grow(task.classes)

        def loss(x: Samples, y: Tensor) -> Tensor:
            return F.cross_entropy(self.heads(self.features(x)), self.heads.columns(y))

        self.train_weights(fit, data, loss, self.backbone.used_weights())
        self.exemplars.refill(data, self.features, fit, task.classes)
