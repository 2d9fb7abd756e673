"""SplitLoRA: a low-rank branch for each task, in random directions that old tasks use little, as many as pays off.

Qiu et al., "SplitLoRA: Balancing Stability and Plasticity in Continual Learning Through Gradient Space Splitting",
ICLR 2026, arXiv 2505.22370. Authors' code: github.com/iLearn-Lab/ICLR26-SplitLoRA, read at 7a3f6d7 and compared on
2026-11-30 (docs/verified.md); the paper was read in its abstract only, so no equation numbers are given.

As in InfLoRA a branch with a fixed A changes W only within the span of A's rows, which avoid the inputs of old tasks.
Two things differ: how many directions are avoided is the result of a trade-off, not of a fixed share of energy, and A
is a random draw from the others, not the new task's leading directions.

    paper                       here
    A_t (r x d, fixed)          branch.A: reduces
    B_t (d_out x r, trained)    branch.B: expands; folded into W after the task
    S                           moment: the mean of x x^T over all tokens x of all tasks so far
    t                           tasks: how many are learned when S is split
    alpha                       room
    k                           count_by_trade_off: argmin_k t (1 - share of the first k) - alpha (d - k) / d
    U_minor                     the eigenvectors of S after the first k: the complement of `space`
    A_t = (U_minor G)^T         G Gaussian; scaled to the norm of LoRA's usual start, divided by the number of the task

Departures (from the authors' code):
- U_minor U_minor^T R with R Gaussian (d x r) takes the place of U_minor G. Both have the same distribution.
- At least one direction is protected, as the formula says; the code protects two or more. At least `rank` directions
  stay free, so that the next branch has its rank; the code can run out of them.
- The authors' code at 7a3f6d7 gives A the norm of LoRA's usual start (`shrinking=False`). A copy of another version,
  in thanhttvq12/test at 004b6ce, divides that by the number of the task, as is the default here.
- The moments of a task are taken after its branch is folded, over its augmented training images once, each token with
  weight one in all tasks. So does the code, over ten augmentations of each image.
- An epoch of the code has each image ten times (`expand_times`; the loader was read in that copy), so its 10 epochs
  are 100 passes, and timm's schedule divides the rate after 4 and 7 of them. Here 10 epochs are 10 passes, and the rate
  falls after 5 and 8: `epochs=100, milestones=(0.4, 0.7)` are the code's. The rates (AdamW, 1e-3, heads 1e-2), decay
  5e-5, batches of 256 and temperature 30 are those of its script.
- Key and value share one A, as in this package's other methods; the code draws one each: `sites=("key", "value")`.
- Its AutoAugment, its crops and its backbone, a ViT-B/16 that was fine-tuned on ImageNet-1k, are settings of a run. The
  code trains in float16.
- As in the code, heads of old tasks stand side by side with the new one at test time; temperature is for training only.
"""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, merge, module_key
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.memory.resizable import Resizable
from lamella.memory.subspace import SecondMoment, Subspace, count_by_trade_off
from lamella.methods.shared.moments import second_moments
from lamella.methods.shared.own_heads import OwnHeads, cross_entropy
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["SeenInputs", "SplitLoRA"]


class SeenInputs(Resizable):
    """What old tasks put into one layer.

    Args:
        width: d, the number of inputs.

    Attributes:
        moment: S, the second moment over the tokens of all tasks.
        space: the directions that the next task is kept away from.
    """

    for_training = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.moment = SecondMoment(width)
        self.space = Subspace(width)

    @torch.no_grad()
    def split(self, tasks: int, room: float, free: int) -> None:
        """Choose the protected directions anew.

        Args:
            tasks: t, the number of tasks learned so far, at least 1.
            room: alpha, the weight of free directions; above 0.
            free: how many directions stay free at least; at most d count.
        """
        values, vectors = torch.linalg.eigh(self.moment.mean.double())
        count = min(count_by_trade_off(values.flip(0), tasks, room), max(len(values) - free, 0))
        self.space = Subspace(len(values)).to(values.device)
        self.space.extend(vectors.flip(1)[:, :count])


class SplitLoRA(OwnHeads):
    """SplitLoRA, by default with the rates, batches and temperature of the authors' script.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of each task's branches; see `LoRA`.
        training: how the task's B and head are trained; see `Training`.
        room: alpha, how much the share of free directions counts against the energy of old inputs that is not
            protected; above 0. Less of it protects more directions.
        temperature: what logits are divided by in training; above 0.
        shrinking: whether the norm of A is divided by the number of the task, counted from 1, so that later tasks make
            smaller changes.

    Raises:
        ValueError: a value is not allowed.
    """

    merges = True
    needs = frozenset({"own A", "reads A", "product"})
    own_meanings = frozenset({"temperature"})

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(
            epochs=10,
            lr=1e-3,
            head_lr=1e-2,
            batch_size=256,
            optimizer="adamw",
            weight_decay=5e-5,
            schedule="milestones",
            milestones=(0.5, 0.8),
        ),
        room: float = 20.0,
        temperature: float = 30.0,
        shrinking: bool = True,
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        if not room > 0:
            raise ValueError(
                f"room {room} must be above 0; the authors' code has 20, and less protects more directions"
            )
        if not temperature > 0:
            raise ValueError(f"temperature {temperature} must be above 0; the authors' script has 30, and 1 has none")
        self.room = room
        self.temperature = temperature
        self.shrinking = shrinking
        # Layers that read the same inputs, as key and value do where they are not fused, share what is known of these.
        self.reads_as = backbone.first_readers(self.sites)
        widths = {site.name: site.layer.weight.shape[1] for site in self.sites}
        self.memory = nn.ModuleDict(
            {module_key(name): SeenInputs(widths[name]) for name in dict.fromkeys(self.reads_as.values())}
        )

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        branches = self._grow(len(self.heads))
        criterion = partial(cross_entropy, temperature=self.temperature)
        self.train_head(task, fit, [branch.B for branch in branches], criterion=criterion)
        merge(self.sites, "new")  # W <- W + B A
        moments = second_moments(fit, task.train, self.backbone, self.sites, self.reads_as, name="moment-after")
        for layer, moment in moments.items():
            self._seen(layer).moment.add(moment)
            self._seen(layer).split(len(self.heads), self.room, self.lora.rank)

    def protected(self) -> dict[str, Subspace]:
        return {layer: self._seen(layer).space for layer in dict.fromkeys(site.name for site in self.sites)}

    @torch.no_grad()
    def _grow(self, number: int) -> list[Branch]:
        """Add branches for task `number`, from 0, with random rows of A in the free directions."""
        draws = generator(self.seed, "splitlora", number)
        branches = self.lora.grow(self.sites, "new", generator(self.seed, "lora", number))
        if number:
            for site, branch in zip(self.sites, branches, strict=True):
                A = free_draw(self._seen(site.name).space, branch.rank, draws)
                size = branch.A.norm() / (number + 1 if self.shrinking else 1)
                branch.A.copy_(A * (size / A.norm()))
        return branches

    def _seen(self, layer: str) -> SeenInputs:
        return cast(SeenInputs, self.memory[module_key(self.reads_as[layer])])


def free_draw(space: Subspace, rank: int, draws: torch.Generator) -> Tensor:
    """Return (rank, d) Gaussian rows, projected on the directions that are not in the subspace."""
    R = torch.randn(space.width, rank, generator=draws).to(space.vectors)
    return space.outside(space.outside(R)).T  # twice, because one projection in float32 leaves a trace
