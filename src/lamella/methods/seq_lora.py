"""Sequential LoRA: one adapter, trained on task after task, with nothing against forgetting.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. The honest lower
reference of every LoRA method for continual learning. Given all tasks as one it is `joint`, the upper bound.

    paper           here
    r               rank
    alpha / r       scale 1, as InfLoRA's code has it

Departures: the sites are key and value, InfLoRA's; each task trains its own head on its own classes.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lamella.adapters.adapter import grow
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.methods.method import Method
from lamella.methods.shared.heads import Heads
from lamella.training.fit import Fit
from lamella.training.schedules import named_schedule

__all__ = ["SeqLoRA"]


class SeqLoRA(Method):
    """One LoRA, trained on.

    Args:
        rank: of the adapter. sites: roles that carry a branch. blocks: only the first so many.
        epochs, lr, batch_size, optimizer, schedule: of the adapter and the task's head.
        head_start: "uniform" (torch's own) or "zero", better on features of large norm.
    """

    def __init__(
        self, backbone: Backbone, *, seed: int = 0, rank: int = 10, sites: Sequence[str] = ("key+value",),
        blocks: int | None = None, epochs: int = 20, lr: float = 5e-4, batch_size: int = 128,
        head_start: str = "uniform", optimizer: str = "adam", schedule: str = "as_run",
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.seed, self.rank = backbone, seed, rank
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.head_start, self.optimizer, self.schedule = head_start, optimizer, named_schedule(schedule)
        self.sites = backbone.sites(*sites, blocks=blocks)
        grow(self.sites, "lora", rank, generator=generator(seed, "lora"))
        self.heads = Heads(backbone.width, head_start, seed)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        head = self.heads.grow(task.classes)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(head(self.features(x)), head.columns(y))

        factors = [factor for site in self.sites for b in site.layer.of("lora") for factor in (b.A, b.B)]
        fit(task.train, loss, [*factors, *head.parameters()], epochs=self.epochs, lr=self.lr,
            batch_size=self.batch_size, optimizer=self.optimizer, schedule=self.schedule)  # fmt: skip
