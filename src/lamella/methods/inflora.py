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

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, Site, merge, module_key
from lamella.adapters.starts import read_directions
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.memory.old_moments import OldMoment, ratio_directions, shrinkage
from lamella.memory.signatures import protected_share
from lamella.memory.subspace import Subspace, left_singular, numerical_rank, orthonormal
from lamella.methods.shared.moments import at_most, second_moments
from lamella.methods.shared.own_heads import OwnHeads
from lamella.methods.shared.self_distillation import SelfDistillation
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["EnergyRule", "InfLoRA"]


@dataclass(frozen=True)
class EnergyRule:
    """Which directions of a task's inputs are protected from then on (DualGPM, with the code's or the paper's energy).

    Attributes:
        energy: the share that is protected after the first task; above 0, at most 1.
        energy_of: what counts as energy: "moment" (the squared singular values of the second moment) or "data" (its
            singular values, which are the squared ones of the inputs).
        horizon: the number T of tasks with which the share grows as energy + (1 - energy) t / T; constant without it.
    """

    energy: float
    energy_of: str
    horizon: int | None

    def __post_init__(self) -> None:
        protected_share(self.energy, 0, self.horizon)  # refuses bad values before anything is learned
        check_one_of("energy_of", self.energy_of, ("moment", "data"))

    def threshold(self, task: int) -> float:
        return protected_share(self.energy, task, self.horizon)

    def spectrum(self, G: Tensor, space: Subspace) -> tuple[Tensor, Tensor]:
        """Return the free directions of G (d, d), most energetic first, and the share of G's energy in each."""
        if self.energy_of == "moment":
            U, s = left_singular(space.outside(G))
            return U, s**2 / (G**2).sum()
        U, s = left_singular(space.outside(space.outside(G).T))
        return U, s / G.trace()

    def protect(self, space: Subspace, G: Tensor, task: int, *, first: bool) -> None:
        """Extend `space` by the leading free directions of G until the protected share reaches the threshold."""
        threshold = self.threshold(task)
        U, share = self.spectrum(G.double(), space)
        if first:
            count = max(int((share.cumsum(0) < threshold).sum()), 1)
        else:
            unprotected = share.sum() - torch.cat([share.new_zeros(1), share.cumsum(0)])
            enough = unprotected <= 1 - threshold + 1e-12
            count = int(enough.long().argmax()) if bool(enough.any()) else len(share)
        free = space.width - space.dimension
        space.extend(U[:, : min(count, free)])


class InfLoRA(OwnHeads):
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
        super().__init__(backbone, seed, training, lora)
        if statistics_images is not None and statistics_images < 1:
            raise ValueError(f"statistics_images {statistics_images} is too small; give at least 1, or leave it out")
        check_one_of("design", design, ("moment", "inputs", "ratio"))
        self.rule = EnergyRule(energy, energy_of, horizon)
        self.design = design
        self.statistics_images = statistics_images
        self.shrink = shrink
        self.distillation = distillation.on(backbone)
        self.free_rank = lora.rank if design != "ratio" else None
        # Layers that read the same inputs, as key and value do, share what is known of these.
        self.reads_as = backbone.first_readers(self.sites)
        widths = {site.name: site.layer.weight.shape[1] for site in self.sites}
        spaces = {name: Subspace(widths[name]) for name in dict.fromkeys(self.reads_as.values())}
        self.memory = nn.ModuleDict({module_key(name): spaces[first] for name, first in self.reads_as.items()})
        moments = spaces if shrink or design == "ratio" else ()  # what old inputs were, where they are weighed
        self.moments = nn.ModuleDict({module_key(name): OldMoment(widths[name]) for name in moments})

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()  # no dropout while training, as in the authors' code
        before = self._moments(task, fit, "moment-before")
        branches = self._grow_designed(before)
        self.train_head(task, fit, [branch.B for _, branch in branches], distillation=self.distillation)
        if self.shrink:
            for site, branch in branches:
                name = self.reads_as[site.name]
                branch.B.mul_(1 - shrinkage(branch.A, self._old(name).moment, before[name]))

        number = len(self.objective) - 1
        for name, G in self._moments(task, fit, "moment-after").items():
            if self.design != "ratio":
                self.rule.protect(self._space(name), G, number, first=number == 0)
            if self.moments:
                self._old(name).add(G)
        merge(self.sites, "new")  # W <- W + B A

    def protected(self) -> dict[str, Subspace]:
        names = dict.fromkeys(site.name for site in self.sites) if self.design != "ratio" else ()
        return {layer: self._space(layer) for layer in names}

    def _moments(self, task: Task, fit: Fit, name: str) -> dict[str, Tensor]:
        """Return by layer G, the mean of x x^T over all tokens x of the task's augmented training images.

        Of layers that read the same inputs only the first has one.
        """
        images = at_most(task.train, self.statistics_images, generator(self.seed, name, len(self.objective)))
        dtype = torch.float64 if self.moments else torch.float32
        found = second_moments(fit, images, self.backbone, self.sites, self.reads_as, name=name, dtype=dtype)
        return {layer: moment.mean for layer, moment in found.items()}

    def _grow_designed(self, moments: dict[str, Tensor]) -> list[tuple[Site, Branch]]:
        """Add branches whose A has the leading free directions of the task's inputs as rows, of norm 1 / sqrt 3."""
        of_inputs = {name: self._directions(name, G) for name, G in moments.items()}
        designs = [of_inputs[self.reads_as[site.name]] for site in self.sites]
        open_sites = [(site, U) for site, U in zip(self.sites, designs, strict=True) if U.shape[1]]
        if not open_sites:
            why = "old tasks protect all directions of every adapted layer; lower `energy` or adapt more"
            unread = (
                "the inputs of every adapted layer are zero, so no branch has anything to read; choose other `sites`"
            )
            raise RuntimeError(why if len(self.objective) else unread)
        ranks = [U.shape[1] for _, U in open_sites]
        branches = self.lora.grow([site for site, _ in open_sites], "new", rank=ranks)
        for branch, (_, U) in zip(branches, open_sites, strict=True):
            read_directions(branch, U)
        return [(site, branch) for branch, (site, _) in zip(branches, open_sites, strict=True)]

    def _directions(self, layer: str, G: Tensor) -> Tensor:
        if self.design == "ratio" and len(self.objective):
            return ratio_directions(G, self._old(layer).moment, self.lora.rank)
        return self._design(G, self._space(layer))

    def _design(self, G: Tensor, space: Subspace) -> Tensor:
        """Return (d, k) orthonormal free directions of the inputs, k at most `rank`, the most energetic ones."""
        G = G.double()
        free = space.outside(G) if self.design != "inputs" else space.outside(space.outside(G).T)
        U, s = left_singular(free)
        count = min(
            self.lora.rank, space.width - space.dimension, numerical_rank(s, float(torch.linalg.matrix_norm(G, 2)))
        )
        return orthonormal(space.outside(U[:, :count]))

    def _space(self, layer: str) -> Subspace:
        return cast(Subspace, self.memory[module_key(layer)])

    def _old(self, layer: str) -> OldMoment:
        return cast(OldMoment, self.moments[module_key(layer)])
