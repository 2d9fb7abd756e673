"""E2-LoRA: the ranks of old updates that change outputs least are cut, and a new task writes into what this frees.

"E2-LoRA", ICML 2026, arXiv 2605.27482. Written after a specification; the authors' code (github.com/kiddo127/E2-LoRA,
its folder class_incremental_learning at commit 91f4e5d) was read on 2026-11-30 and compared with it. We had not the
paper's text.

InfLoRA keeps a new update away from the *inputs* of old tasks. E2-LoRA orders each update by its *outputs*, cuts the
weakest ranks when the next task comes, and gives their output directions to this task. So all tasks together have a
constant budget of ranks, R in each layer, the number of its outputs.

    paper                           here
    W0 + sum_k B_k A_k              the layer's weight, into which each update is folded; its factors are kept
    A_k (r_k x d), B_k (R x r_k)    OutputBudget.A, OutputBudget.B: rows and columns of all old updates
    R = sum_k r_k                   budget
    D = X (B_t A_t)^T, centred      never formed: its covariance is (B_t A_t) C (B_t A_t)^T, C that of the inputs X
    lambda_{t,i}                    OutputBudget.variances
    keep_k(thr)                     keep_counts
    0.25 T^2 KL, T                  distill, distill_temperature: SelfDistillation

The algorithm, in each layer:

    learn(task t):
      t = 1:   r_1 = R, A_1 Kaiming-uniform, B_1 = 0; train A_1 and B_1
      t >= 2:  lower thr from 0.99999 until sum_{k<t} keep_k(thr) <= (t - 1) / t R; cut old updates to keep_k ranks;
               B_t = the columns of B that were cut, A_t = 0; train A_t
      rotate:  U = eigenvectors of the covariance of D, by falling eigenvalue; A_t <- U^T B_t A_t, B_t <- U

Departures from the authors' code:
- If D has a lower rank than r_t, as with fewer inputs than outputs it always has, their other columns of U are whatever
  the decomposition returns, which is orthogonal to D but not within the span of B_t. So from the third task on their
  B_t has directions that old tasks keep, a fifth of it on digits (docs/verified.md). Here all columns lie in the span
  of B_t, as the description wants; those without which B_t A_t would change come first. They have lambda = 0. With
  fewer tokens than outputs their columns are not even orthogonal, and their update changes.
- Their shares of lambda are of the update as it was trained (`shares="whole"`), ours of what it has after earlier cuts.
  So ours cuts more from old updates: with each task up to four of 15 to 50 ranks, which carry 1e-5 of the variance.
  Where an old update would get ranks back, as after a task that changes little, their code ends with an error of
  shapes, and with an update that did nothing it never ends; here nothing comes back, and such an update keeps one.
- Updates are folded into the weight, so that a pass costs what it does in the plain network. What is cut is subtracted
  from the weight again; both round in float32.
- C comes from sums over the batch in float64, from which the eigenvectors follow without the tokens. The threshold is a
  multiple of 1e-5, without the error of repeated subtraction.
- Where query, key and value are layers of their own, as in most encoders of texts, each has its own budget. Of the role
  "mlp" only layers that read a block's narrowest input are adapted: the first of an MLP, not the second.
- The last LayerNorm stays as it is; the authors reset it to weight 1 and bias 0. The heads can learn the difference.
- Heads start as torch's linear layers do, theirs normally with a deviation of 0.02 and biases of 0. A class that comes
  back counts as an old class too in the distillation.
- The authors' alignment (256 samples of a Gaussian for each class and epoch, means of old classes shrunk to 0.9 to 1,
  three epochs for all heads, from the second task on, no compensation of drift; the teacher of the next task has these
  heads) is left to the part `align`, whose statistics move with the features, whose default is a discriminant, and
  which leaves the heads as they are; `method.align.head="refit"` is nearer to the authors'.
- The default is their file for ImageNet-R, five epochs at one rate. In those for CIFAR-100 the rates are a tenth in the
  last of five epochs (`schedule="milestones"`, `milestones=[0.8]`), ImageNet-A has 10 and a tenth from epoch 4 on, CUB
  has 10, and Cars 50 with a tenth from epoch 40 on.
- `budget` below the number of outputs is ours, for small machines: the directions beyond it are never used.
- Their code for domains starts otherwise (A_1 = 0, B_1 the identity, a threshold of 0.9999); that is not followed.
"""

from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, Site, grow, merge, module_key, watch
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.common.words import many
from lamella.data.scenario import Task
from lamella.memory.output_budget import InputCovariance, OutputBudget, rotated
from lamella.methods.shared.own_heads import OwnHeads, factors
from lamella.methods.shared.self_distillation import SelfDistillation
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["E2LoRA"]


class E2LoRA(OwnHeads):
    """E2-LoRA, by default with the authors' settings for ImageNet-R.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        training: how the task's branches and head are trained; see `Training`.
        distillation: how strongly the answers for old classes are kept; see `SelfDistillation`.
        sites: the roles of the layers that carry branches, as for other methods. Of the role "mlp" only the first
            layers are adapted, which read what the attention reads.
        blocks: how many blocks are adapted, counted from the input; at least 1. If left out, all of them are.
        budget: R, how many ranks all tasks together have in each layer, at least one for each task and at most the
            number of adapted outputs, to which it is lowered. If left out, it is that number.
        statistics_images: how many random images of the task are used to order the ranks of its update; at least 1.
        shares: what the shares of an old update's variance are of, by which its last ranks are cut: "left" (of what it
            has after earlier cuts) or "whole" (of what it had when it was trained, as in the authors' code).

    Raises:
        ValueError: a value is not allowed.
    """

    merges = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = Training(
            epochs=5, lr=5e-4, head_lr=0.01, batch_size=64, optimizer="sgd", momentum=0.9, weight_decay=5e-4
        ),
        distillation: SelfDistillation = SelfDistillation(distill=0.25),
        sites: tuple[str, ...] = ("query+key+value", "mlp"),
        blocks: int | None = None,
        budget: int | None = None,
        statistics_images: int = 64,
        shares: str = "left",
    ) -> None:
        super().__init__(backbone, seed, training)
        if budget is not None and budget < 1:
            raise ValueError(f"budget {budget} is too small; give at least one rank for each task, or leave it out")
        if statistics_images < 1:
            raise ValueError(f"statistics_images {statistics_images} is too small; give at least 1")
        check_one_of("shares", shares, ("left", "whole"))
        self.distillation = distillation
        self.budget = budget
        self.shares = shares
        self.statistics_images = statistics_images
        self.sites = _reading_tokens(backbone, LoRA(sites=sites, blocks=blocks).attach(backbone))
        self.memory = nn.ModuleDict({_key(s): OutputBudget(s.layer.weight.shape[1], _outputs(s)) for s in self.sites})
        self.most_tasks = min(self.ranks(site) for site in self.sites)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        if self.most_tasks is not None and len(self.heads) >= self.most_tasks:
            raise ValueError(
                f"a budget of {many(self.most_tasks, 'rank')} a layer has no room for task {len(self.heads) + 1}, as "
                "each task needs one; start a new model with a larger `budget`"
            )
        first = not len(self.heads)
        branches = self._grow_whole() if first else self._grow_freed()
        trained = factors(branches) if first else [branch.A for branch in branches]
        self.train_head(task, fit, trained, distillation=self.distillation)
        covariances = self._covariances(task, fit)
        for site, branch in zip(self.sites, branches, strict=True):
            self._budget(site).add(rotated(branch.A, branch.B, covariances[site.name]))
        merge(self.sites, "new")  # W <- W + B_t A_t

    def ranks(self, site: Site) -> int:
        """Return R, the ranks that all tasks together have on a site."""
        return _outputs(site) if self.budget is None else min(self.budget, _outputs(site))

    def _grow_whole(self) -> list[Branch]:
        """Add the branches of the first task, which have the whole budget."""
        return grow(self.sites, "new", [self.ranks(s) for s in self.sites], generator=generator(self.seed, "e2lora"))

    @torch.no_grad()
    def _grow_freed(self) -> list[Branch]:
        """Cut old updates, and add branches that write into the output directions which this frees."""
        t = len(self.heads) + 1
        freed: list[Tensor] = []
        for site in self.sites:
            A, B = self._budget(site).release((t - 1) * self.ranks(site) / t, of_whole=self.shares == "whole")
            rows = site.layer.weight[site.rows]
            rows.copy_(rows.to(torch.promote_types(rows.dtype, torch.float32)) - B @ A)
            freed.append(B)
        branches = grow(self.sites, "new", [B.shape[1] for B in freed])
        for branch, B in zip(branches, freed, strict=True):
            branch.B.copy_(B)
        return branches

    def _covariances(self, task: Task, fit: Fit) -> dict[str, Tensor]:
        """Return by layer the covariance (d, d) of the inputs of some of the task's images, with the new branches."""
        order = torch.randperm(len(task.train), generator=generator(self.seed, "e2lora", "images", len(self.heads)))
        images = task.train.subset(order[: self.statistics_images])
        with watch(self.sites, lambda layer: InputCovariance(layer.weight.shape[1])) as observers:
            fit.scan(
                images,
                lambda x, y: self.backbone.show(x, self.sites),
                augment=True,
                keep=observers,
                any_order=True,
                name="rotation",
            )
        return {layer: observer.covariance for layer, observer in observers.items()}

    def _budget(self, site: Site) -> OutputBudget:
        return cast(OutputBudget, self.memory[_key(site)])


def _key(site: Site) -> str:
    return module_key(f"{site.name}:{site.rows.start}")


def _outputs(site: Site) -> int:
    return site.rows.stop - site.rows.start


def _reading_tokens(backbone: Backbone, sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """Leave out layers that read more inputs than others of their block do, as the second one of an MLP does."""
    block = {place.name: place.block for place in backbone.places()}
    narrowest: dict[int, int] = {}
    for site in sites:
        number, width = block[site.name], site.layer.weight.shape[1]
        narrowest[number] = min(narrowest.get(number, width), width)
    return tuple(site for site in sites if site.layer.weight.shape[1] == narrowest[block[site.name]])
