"""InfLoRA: a low-rank branch for each task, in a subspace that is orthogonal to the inputs of old tasks.

Liang & Li, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning", CVPR 2024, arXiv 2404.00228.
Authors' code: github.com/liangyanshuo/InfLoRA. Prior: GPM (Saha et al. 2021), DualGPM (Liang & Li, CVPR 2023).

With A fixed, training B changes W only within the span of A's rows (Proposition 1). Rows that are orthogonal to the
inputs of old tasks do not change their outputs; rows along the inputs of the new task let it learn.

    paper                       here
    B_t (r x d_in, fixed)       branch.A: reduces. The paper and the code use opposite letters; ours are Hu et al.'s
    A_t (d_out x r, trained)    branch.B: expands
    H_t                         inputs of a layer; only their second moment G = mean x x^T is kept
    M_t, M_t-orthogonal         Subspace: a basis of what is protected, or of its complement
    eps_th                      energy

`design="ratio"` and `shrink` are two steps of LoDA (arXiv 2603.00191; see its own page), and `distill` is one of
E2-LoRA (arXiv 2605.27482). The paper has none of them.

Departures (from the paper [p], from the authors' code [c]):
- A's rows are the left singular vectors of P G, the code's choice, not of P H [p]; `design="inputs"` is the paper's.
- Energy counts squared singular values of G [c], not those of the inputs [p]; `energy_of="data"` is the paper's. The
  published figures need the code's rule: with it about a dozen of 768 directions are protected at 0.95, else hundreds.
- The first task keeps one direction fewer than the rule of later tasks would [c].
- If the first task needs more than half of the directions, the complement is stored, as the paper intends; the code
  stores the wrong space, and a check of its own then stops it [c].
- If fewer directions than `rank` are free, the branch has a smaller rank; the additional rows of the code leave the
  free space [c].
- Bases are made orthonormal again after each update, A is projected once more after its design [c].
- Branches are merged after each task [p]; the code computes the products of all branches in every pass [c].
- `horizon=None`: the number of tasks is unknown, and the threshold stays at `energy`.
"""

from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import merge, module_key
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.data.scenario import Task
from lamella.memory.old_moments import OldMoment, ratio_directions, shrinkage
from lamella.memory.subspace import Subspace
from lamella.methods.shared.free_directions import EnergyRule, ReadsFreeDirections
from lamella.methods.shared.self_distillation import SelfDistillation
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["InfLoRA"]


class InfLoRA(ReadsFreeDirections):
    """InfLoRA, by default with the settings of the authors' code for CIFAR-100.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of each task's branches; see `LoRA`. InfLoRA-b5 has `blocks=5`.
        training: how the task's B and head are trained; see `Training`.
        energy: the share of the inputs' energy that is protected after the first task; above 0, at most 1.
        horizon: the number T of tasks that are expected, at least 1, or "auto" for the number of tasks of the scenario.
            The share then grows with the number t of learned tasks as energy + (1 - energy) t / T. If left out, the
            share is constant.
        energy_of: the matrix whose squared singular values count as energy: "moment" (the second moment of the inputs,
            as in the authors' code) or "data" (the inputs themselves, as in the paper).
        design: the matrix whose leading left singular vectors become the rows of A: "moment" (the free part of the
            second moment of the inputs, as in the authors' code) or "inputs" (the free part of the inputs, as in the
            paper). With "ratio" nothing is protected, and the rows are those directions that have the most energy in
            the task's inputs for their energy in old ones, as in LoDA; `energy` and `horizon` then have no effect.
        statistics_images: how many random images of the task the second moments are computed from, before and again
            after training; at least 1. If left out, all of its images are used.
        shrink: whether each column of B is scaled down after training by how much its row of A reads of old inputs, as
            in LoDA.
        distillation: how strongly the answers for old classes are kept; see `SelfDistillation`.

    Raises:
        ValueError: a value is not allowed.
    """

    merges = True
    needs = frozenset({"own A", "reads A", "product"})
    answers = True
    federates = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(schedule="inflora-code"),
        energy: float = 0.95,
        horizon: int | None = None,
        energy_of: str = "moment",
        design: str = "moment",
        statistics_images: int | None = None,
        shrink: bool = False,
        distillation: SelfDistillation = SelfDistillation(),
    ) -> None:
        check_one_of("design", design, ("moment", "inputs", "ratio"))
        weighs = shrink or design == "ratio"  # what old inputs were is weighed
        dtype = torch.float64 if weighs else torch.float32
        rule = EnergyRule(energy, energy_of, horizon)
        super().__init__(backbone, seed, training, lora, rule, design == "inputs", statistics_images, dtype)
        self.design = design
        self.shrink = shrink
        self.distillation = distillation.on(backbone)
        self.free_rank = lora.rank if design != "ratio" else None
        widths = {site.name: site.layer.weight.shape[1] for site in self.sites}
        names = dict.fromkeys(self.reads_as.values()) if weighs else ()
        self.moments = nn.ModuleDict({module_key(name): OldMoment(widths[name]) for name in names})

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()  # no dropout while training, as in the authors' code
        before = self.moments_of(task, fit, "moment-before")
        branches = self.grow_designed(before)
        self.train_head(task, fit, [branch.B for _, branch in branches], distillation=self.distillation)
        if self.shrink:
            for site, branch in branches:
                name = self.reads_as[site.name]
                branch.B.mul_(1 - shrinkage(branch.A, self._old(name).moment, before[name]))

        after = self.moments_of(task, fit, "moment-after")
        if self.design != "ratio":
            self.protect(after)
        if self.moments:
            for name, G in after.items():
                self._old(name).add(G)
        merge(self.sites, "new")  # W <- W + B A

    def protected(self) -> dict[str, Subspace]:
        return super().protected() if self.design != "ratio" else {}

    def directions(self, layer: str, G: Tensor) -> Tensor:
        if self.design == "ratio" and len(self.objective):
            return ratio_directions(G, self._old(layer).moment, self.lora.rank)
        return super().directions(layer, G)

    def _old(self, layer: str) -> OldMoment:
        return cast(OldMoment, self.moments[module_key(layer)])
