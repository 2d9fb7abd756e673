"""Sequential LoRA: one adapter, trained on task after task, with nothing against forgetting.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. The honest lower
reference of every LoRA method for continual learning. Given all tasks as one it is `joint`, the upper bound.

    paper           here
    r               rank
    alpha / r       alpha / rank; 1 where `alpha` is left out, as InfLoRA's code has it

Departures: the sites are key and value, InfLoRA's; each task trains its own head on its own classes.
"""

from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.methods.shared.own_heads import OwnHeads, factors
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["SeqLoRA"]


class SeqLoRA(OwnHeads):
    """One LoRA, trained on.

    Args:
        backbone: its layers of the roles in `sites` are adapted.
        seed: of all draws.
        lora: see `LoRA`; the one adapter.
        training: see `Training`; of the adapter and the task's head.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(schedule="inflora-code"),
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        lora.grow(self.sites, "lora", generator(seed, "lora"))

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        self.train_head(task, fit, factors(branch for site in self.sites for branch in site.layer.of("lora")))
