"""SD-LoRA: the directions of old tasks are frozen, and every task trains the magnitudes of all directions.

Wu et al., "SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning", ICLR 2025,
arXiv 2501.13198. Authors' code: github.com/WuYichen-97/SD-Lora-CL.

A layer's update after task t is the sum over i <= t of alpha_i (B_i A_i) / (|B_i|_F |A_i|_F). Task t trains its own
pair and every alpha; the directions of tasks i < t are frozen. A prediction needs one pass, and no choice of a task.

    paper                       here
    A_i B_i, their product      branch.B @ branch.A: A reduces, B expands
    direction of task i         branches "task{i}-{site}", each scaled to |B| |A| = 1 after its task
    alpha_i                     alphas[i]: one value for each site, or one for all sites

As the authors' code has it: the norm is the product |B| |A|, not |B A|; a pair is not normalised while its own task
trains, since B starts at zero and has no direction yet, but its alpha trains beside it; alpha starts at 0.8; the rank
is 10; the classes of each task compete among themselves.

Departures (from the authors' code [c]):
- `magnitudes="carried"`: every site has its own alpha. When the task ends, the alpha is multiplied by the norm of its
  pair, so that normalising the pair changes no output, and later tasks train it from this value. The code has one alpha
  for each task and all layers, and sets all of them back to 0.8 before each task, which changes the old updates:
  `magnitudes="restarted"` [c].
- Sites are key and value, like the other LoRA methods here; the code's are sites = ["query", "value"] [c].
- The optimiser is the code's for CIFAR-100: SGD at a constant 8e-3, momentum 0.9, batches of 128 for 20 epochs. The
  code has 1e-2 for ImageNet-R, and rates that fall for ImageNet-A and DomainNet [c].
- Heads start as torch's linear layers do; the code's are `head_start="kaiming"` [c]. `sdlora-cifar100-10` has the
  code's sites, magnitudes and settings of training.
- SD-LoRA-RR, whose later tasks have smaller ranks, and SD-LoRA-KD, which leaves out a new direction that is nearly a
  combination of the old ones, are not here.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, using
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.methods.shared.growing import start_moments
from lamella.methods.shared.own_heads import OwnHeads, factors
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["SDLoRA"]


class SDLoRA(OwnHeads):
    """A direction for each task and site, which is then frozen, and magnitudes that all later tasks train.

    By default it is trained with the settings of the authors' code for CIFAR-100.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of each task's pairs A, B; see `LoRA`.
        training: how the task's pairs and head, and all magnitudes, are trained; see `Training`.
        magnitudes: which magnitudes there are: "carried" (one for each task and site, whose training continues from
            task to task) or "restarted" (one for each task, set back to `magnitude_start` before each task, as in the
            authors' code).
        magnitude_start: the magnitudes of a new task before training; not 0.

    Raises:
        ValueError: a value is not allowed.
    """

    needs = frozenset({"product", "trained pair", "frozen weight"})
    answers = True
    removed: ClassVar[dict[str, Any]] = {"rank_reduction": []}
    unstored: ClassVar[dict[str, Any]] = {"momentum": 0.0}  # version 0.1 had no momentum here

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(lr=8e-3, optimizer="sgd", momentum=0.9),
        magnitudes: str = "carried",
        magnitude_start: float = 0.8,
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        check_one_of("magnitudes", magnitudes, ("carried", "restarted"))
        if magnitude_start == 0:
            raise ValueError("magnitude_start is 0, so the new pair would get no gradient; the authors' code has 0.8")
        self.magnitudes = magnitudes
        self.magnitude_start = magnitude_start
        self.alphas = nn.ParameterList()

    def acting(self, x: Samples) -> AbstractContextManager[None]:
        """All directions so far act, each with its magnitude."""
        return using(self.sites, {_name(t, k): a[k % len(a)] for t, a in enumerate(self.alphas) for k in self._numbers})

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        number = len(self.objective)
        if self.magnitudes == "restarted":
            self.alphas = nn.ParameterList(self._start() for _ in range(number))
        pairs = self._grow(number, start_moments(self.lora, self, self.sites, task, fit))
        self.alphas.append(self._start())
        self.train_head(task, fit, [*factors(pairs), *self.alphas])
        self._normalise(pairs)

    def adapters_of(self, task: int) -> tuple[str, ...]:
        return tuple(_name(task, k) for k in self._numbers)

    def _grow(self, number: int, moments: Mapping[str, Tensor]) -> list[Branch]:
        """Add the pairs of a new task, one adapter for each site, so that each site can have its own magnitude."""
        draws = generator(self.seed, "sdlora", number)
        return [
            branch
            for k, site in enumerate(self.sites)
            for branch in self.lora.grow([site], _name(number, k), draws, moments=moments)
        ]

    def _start(self) -> nn.Parameter:
        """Return the untrained magnitudes of a task, (sites,) or (1,)."""
        count = len(self.sites) if self.magnitudes == "carried" else 1
        weight = self.sites[0].layer.weight
        return nn.Parameter(torch.full((count,), self.magnitude_start, device=weight.device), requires_grad=False)

    @torch.no_grad()
    def _normalise(self, pairs: Sequence[Branch]) -> None:
        """Scale each newest pair to |B| |A| = 1 and multiply its magnitude by the factor, so that no output changes."""
        norms = torch.stack([branch.A.norm() * branch.B.norm() for branch in pairs]).float()
        norms = torch.where(norms > 0, norms, 1.0)  # a pair that learned nothing has no direction
        for branch, norm in zip(pairs, norms, strict=True):
            branch.B.div_(norm)
        self.alphas[-1] = nn.Parameter(self.alphas[-1] * norms, requires_grad=False)

    @property
    def _numbers(self) -> range:
        return range(len(self.sites))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        count = sum(key.startswith(f"{prefix}alphas.") for key in state_dict)
        device = self.sites[0].layer.weight.device
        held = [torch.empty_like(state_dict[f"{prefix}alphas.{i}"], device=device) for i in range(count)]
        self.alphas = nn.ParameterList(nn.Parameter(alpha, requires_grad=False) for alpha in held)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _name(task: int, site: int) -> str:
    return f"task{task}-{site}"
