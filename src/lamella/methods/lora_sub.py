"""LoRA-Sub (LoRA-DRS): the steps of a new branch stay where the network without all old branches sees the new samples.

Liu & Chang, "LoRA Subtraction for Drift-Resistant Space in Exemplar-Free Continual Learning", CVPR 2025,
arXiv 2503.18985. Authors' code: github.com/scarlet0703/LoRA-Sub-DRS, of which only copies by others were at hand: it
was read and compared in namphh28/LoraSub_Optimize at d725a1f on 2026-11-30 (docs/verified.md). The paper was read in
summaries only, so no equation numbers are given. Prior: Adam in the null space of old inputs (Wang et al., CVPR 2021,
arXiv 2103.07113).

Before a task all old updates are *subtracted* from the pre-trained weights, not added to them. What the inputs of a
layer span in that network is called the drift-resistant space; each step of the optimiser is projected on it.

    paper                       here
    W_0 - sum_j B_j A_j         within `subtracted`: W - 2 x the sum of old updates, since W = W_0 + the sum
    X_t                         the second moment of a layer's inputs in that network, over the task's tokens
    U                           drift_resistant: the leading eigenvectors of X_t with a share `energy` of its trace
    P = U U^T / |U U^T|_F       times_p for steps of A, p_times for steps of B
    dw <- P dw                  ProjectedSteps: the optimiser's update times P, from the second task on
    L_CE + lambda L_TL          cross-entropy among the task's classes + triplet x augmented_triplet
    epsilon                     margin
    prototypes                  statistics.means, each as it was when its class was learned

Departures (from the code in that copy; unsaid in what was read [u]):
- The old updates are kept as their sum, not as branches. A new branch starts with B = 0, so that it changes nothing;
  the code's B has one random entry of size 0.01 in each column.
- Steps of A are multiplied by P on the right, as its rows read inputs, and steps of B by the same P on the left, as in
  the code. Columns of B write to keys or values, and why these should stay within what inputs span was not found [u]:
  `project_b=False` leaves steps of B as they are. Where a site has several roles, as key and value, each block of rows
  is projected apart.
- The first task is trained without projection, and the share of energy is counted on eigenvalues of X_t, as in the
  code.
- The small number in Adam's denominator is added after the correction of its bias, as in torch; in the code before.
  That differs in early steps with gradients below 1e-6.
- A prototype of the sample's own class is no negative; in the code no class comes back. The mean of a class that does
  is that of all its samples, each as the network of its task saw it.
- Prototypes do not follow the drift of later tasks, as in the code; `+align` would move them.
- The head of a task serves its training alone and is not kept, as predictions are the nearest class mean.
- Key and value share one A, as in this package's other methods, with the training settings of `seq-lora`; the code has
  one each, Adam at 5e-4, heads at 2e-3, InfLoRA's cosine, 20 epochs, batches of 128. `weight_decay` would be projected
  too.
- Another copy, qiermeng/LoRA-Sub-DRS at 360a034, also takes from each new branch what it shares with old ones. No other
  copy does, so this does not.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, Site, merge
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.signatures import protected_share
from lamella.memory.subspace import count_by_share
from lamella.memory.weight_sums import WeightSum, site_key
from lamella.methods.shared.class_means import ClassMeans
from lamella.methods.shared.growing import grow_for_task
from lamella.methods.shared.heads import Head
from lamella.methods.shared.moments import second_moments
from lamella.methods.shared.own_heads import factors, with_head
from lamella.methods.shared.triplet import augmented_triplet
from lamella.training.fit import Fit
from lamella.training.projected_steps import ProjectedSteps
from lamella.training.recipe import LoRA, Training
from lamella.training.variants import check_variants

__all__ = ["LoRASub", "drift_resistant"]


class LoRASub(ClassMeans):
    """LoRA-Sub, with the authors' triplet loss and this package's settings of training.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of each task's branches; see `LoRA`.
        training: how the task's branches and head are trained; see `Training`.
        energy: the share of the inputs' energy in the drift-resistant space; above 0, at most 1.
        triplet: lambda, the weight of the triplet loss; at least 0, and 0 leaves it out.
        margin: epsilon, by how much a sample should be nearer to its class than to others, on the unit sphere; above 0.
        project_b: whether steps of B are projected too. The output rows of each site must then be as wide as its
            inputs, or a multiple.

    Raises:
        ValueError: a value is not allowed, or rows of a site do not fit its inputs.
    """

    merges = True
    needs = frozenset({"product", "trained pair"})
    own_meanings = frozenset({"energy", "margin"})
    tasks: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(schedule="inflora-code"),
        energy: float = 0.99,
        triplet: float = 0.05,
        margin: float = 1.0,
        project_b: bool = True,
    ) -> None:
        super().__init__(backbone, seed)
        protected_share(energy, 0, None)  # refuses a bad value before anything is learned
        if not triplet >= 0:
            raise ValueError(f"triplet {triplet} is below 0; it weighs a loss, and 0 leaves it out")
        if not margin > 0:
            raise ValueError(f"margin {margin} must be above 0; features have length 1, and 1 is usual")
        self.lora, self.recipe = lora, training
        self.energy, self.triplet, self.margin, self.project_b = energy, triplet, margin, project_b
        check_variants(type(self).__name__, self.needs, lora)
        self.sites = lora.attach(backbone)
        if project_b:
            _check_rows(self.sites)
        self.reads_as = backbone.first_readers(self.sites)
        self.memory = nn.ModuleDict({site_key(site): WeightSum(site) for site in self.sites})
        self.register_buffer("tasks", torch.zeros((), dtype=torch.int64))

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        number = int(self.tasks)
        spaces = self._spaces(task, fit) if number else {}
        draws = generator(self.seed, "lora", number)
        branches = grow_for_task(self.lora, self, self.sites, "new", draws, task, fit)
        self._train(task, fit, branches, spaces, number)
        for site, branch in zip(self.sites, branches, strict=True):
            self._old(site).add(branch.delta(site.layer.weight.shape))
        merge(self.sites, "new")  # W <- W + B A
        self.statistics.add(fit.features(task.train, self.features), task.train.labels, task.classes)
        self.tasks += 1

    def _train(
        self, task: Task, fit: Fit, branches: Sequence[Branch], spaces: Mapping[str, Tensor], number: int
    ) -> None:
        training = self.recipe.of_task(number)
        draws = None if training.head_start == "zero" else generator(self.seed, "head", number)
        head = Head(self.backbone.width, task.classes, draws, training.head_start).to(self.tasks.device)
        means, ids = self.statistics.means, self.statistics.ids

        def loss(x: Samples, y: Tensor) -> Tensor:
            features = self.features(x)
            value = F.cross_entropy(head(features), head.columns(y))
            if not self.triplet:
                return value
            return value + self.triplet * augmented_triplet(features, y, means, ids, self.margin)

        steps = ProjectedSteps(self._projections(branches, spaces))
        groups = with_head(self.lora.groups(factors(branches), self.sites, training.lr), head, training)
        fit(task.train, loss, groups, training, before_step=steps.before, after_step=steps.after)

    def _projections(
        self, branches: Sequence[Branch], spaces: Mapping[str, Tensor]
    ) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Return the projection of each step; for the first task, which has no spaces, none."""
        found: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = []
        for site, branch in zip(self.sites if spaces else (), branches, strict=bool(spaces)):
            U = spaces[self.reads_as[site.name]]
            found.append((branch.A, partial(times_p, U=U)))
            if self.project_b:
                found.append((branch.B, partial(p_times, U=U)))
        return found

    def _spaces(self, task: Task, fit: Fit) -> dict[str, Tensor]:
        """Return by layer U (d, k), the basis of the drift-resistant space of this task."""
        with self.subtracted():
            moments = second_moments(fit, task.train, self.backbone, self.sites, self.reads_as, name="drift-resistant")
        return {layer: drift_resistant(moment.mean, self.energy) for layer, moment in moments.items()}

    @contextmanager
    def subtracted(self) -> Generator[None]:
        """Within this context the layers have the weights W_0 - sum_j B_j A_j; afterwards the very bits from before."""
        kept = [site.layer.weight.detach().clone() for site in self.sites]
        try:
            with torch.no_grad():
                for site in self.sites:
                    site.layer.weight[site.rows] -= 2 * self._old(site).total
            yield
        finally:
            with torch.no_grad():
                for site, weight in zip(self.sites, kept, strict=True):
                    site.layer.weight.copy_(weight)

    def _old(self, site: Site) -> WeightSum:
        return cast(WeightSum, self.memory[site_key(site)])


def drift_resistant(moment: Tensor, energy: float) -> Tensor:
    """Return U (d, k), the leading eigenvectors of a second moment (d, d) that have this share of its trace."""
    values, vectors = torch.linalg.eigh(moment.double())
    count = count_by_share(values.flip(0), energy)
    return vectors.flip(1)[:, :count].to(moment.dtype).contiguous()


def times_p(update: Tensor, U: Tensor) -> Tensor:
    """Return the update (r, d) of an A times P = U U^T / |U U^T|_F, whose norm is the root of U's columns."""
    return update @ U @ U.T / U.shape[1] ** 0.5


def p_times(update: Tensor, U: Tensor) -> Tensor:
    """Return P times the update (m d, r) of a B, for each of its m blocks of d rows."""
    blocks = update.reshape(-1, len(U), update.shape[1])
    return (U @ (U.T @ blocks) / U.shape[1] ** 0.5).reshape(update.shape)


def _check_rows(sites: Sequence[Site]) -> None:
    for site in sites:
        rows, width = site.rows.stop - site.rows.start, site.layer.weight.shape[1]
        if rows % width:
            raise ValueError(
                f"steps of B cannot be projected on layer '{site.name}': its {rows} output rows are no multiple of its "
                f"{width} inputs; choose other sites, or set project_b to false"
            )
