"""Experience replay: all weights are trained on the new images together with a few kept of each old class.

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
  at 30 and 50, and for the first task 200 with a weight decay of 5e-4 [c].
- Of a class that comes back the row learned last counts.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.memory.exemplars import Exemplars
from lamella.methods.method import Method
from lamella.methods.shared.classifier import train_weights
from lamella.methods.shared.heads import Heads
from lamella.training.fit import Fit
from lamella.training.schedules import milestone_schedule

__all__ = ["Replay"]


class Replay(Method):
    """All weights, trained on new images and kept ones.

    Args:
        backbone: of any kind; all of it is trained.
        memory: images kept of all classes together; 0 for none. memory_per_class: images kept of each class instead.
        choose: which: "herding", "random" or "reservoir".
        epochs: of a task. first_epochs: of the first task; as `epochs` where left out.
        lr, batch_size, optimizer, momentum, weight_decay: of the backbone and all heads.
        milestones: shares of the epochs at which the learning rate falls to a tenth.
        head_start: "uniform" (torch's own) or "zero".
    """

    changes_backbone = True

    def __init__(
        self, backbone: Backbone, *, seed: int = 0, memory: int | None = 2000, memory_per_class: int | None = None,
        choose: str = "herding", epochs: int = 170, first_epochs: int | None = None, lr: float = 0.1,
        batch_size: int = 128, optimizer: str = "sgd", momentum: float = 0.9, weight_decay: float = 2e-4,
        milestones: Sequence[float] = (0.47, 0.705), head_start: str = "uniform",
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.seed = backbone, seed
        self.memory, self.memory_per_class, self.choose = memory, memory_per_class, choose
        self.epochs, self.first_epochs, self.lr, self.batch_size = epochs, first_epochs, lr, batch_size
        self.optimizer, self.momentum, self.weight_decay = optimizer, momentum, weight_decay
        self.milestones, self.schedule = milestones, milestone_schedule(milestones)
        self.head_start, self.heads = head_start, Heads(backbone.width, head_start, seed)
        self.exemplars = Exemplars(
            backbone.transform.size, total=memory, per_class=memory_per_class, choose=choose, seed=seed
        )

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        data = self.exemplars.join(task.train, task.classes)
        self.heads.grow(task.classes)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.heads(self.features(x)), self.heads.columns(y))

        train_weights(self, fit, data, loss, [*self.backbone.used_weights(), *self.heads.parameters()])
        self.exemplars.refill(data, self.features, fit, task.classes)
