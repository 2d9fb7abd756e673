"""Sequential LoRA: one adapter is trained on task after task, and nothing prevents forgetting.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. This is the lower
reference, which every LoRA method for continual learning should exceed. Given all tasks as one it is `joint`, the upper
bound.

    paper           here
    r               rank
    alpha / r       alpha / rank; 1 if `alpha` is left out, as in InfLoRA's code

Departures: the sites are key and value, as in InfLoRA; each task trains its own head on its own classes. With `fresh`
every task begins with an adapter of its own, and the one before is folded into the weights. That alone prevents no
forgetting either; with the parts `mean_weights` and `align` it is what new models of photographs start with (`photos`).
"""

from lamella.adapters.adapter import merge
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.methods.shared.own_heads import OwnHeads, factors
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["SeqLoRA"]


class SeqLoRA(OwnHeads):
    """One LoRA, trained on task after task.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of the adapter; see `LoRA`.
        training: how the adapter and the task's head are trained; see `Training`.
        fresh: whether each task trains a new adapter, whose A is random and whose B is zero, and which is folded into
            the weights after it. Otherwise one adapter is trained on and on.
    """

    needs = frozenset()
    answers = True
    federates = True
    not_online = ""

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(schedule="inflora-code"),
        fresh: bool = False,
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        self.fresh = self.merges = fresh
        if fresh:
            self.not_online = "with fresh = true every batch would begin an adapter of its own; leave fresh out"
        if not fresh and not lora.needs_moments:
            lora.grow(self.sites, "lora", generator(seed, "lora"))

    @property
    def one_weight(self) -> bool:
        # What DoRA makes of a weight is no sum, so that a mean cannot lie beneath a branch that stays.
        return super().one_weight and (self.fresh or self.lora.form != "dora")

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        if self.fresh:
            self.grow_new("lora", generator(self.seed, "lora", len(self.objective)), task, fit)
        elif not any(site.layer.of("lora") for site in self.sites):
            self.grow_new("lora", generator(self.seed, "lora"), task, fit)  # its start needs the first task's inputs
        layers = dict.fromkeys(site.layer for site in self.sites)  # each once: a layer may have several sites
        self.train_head(task, fit, factors(branch for layer in layers for branch in layer.of("lora")))
        if self.fresh:
            merge(self.sites, "lora")  # W <- W + B A
