"""EWC-LoRA: a low-rank branch for each task; a penalty holds what old tasks need, as measured on whole weights.

Zheng et al., "Revisiting Weight Regularization for Low-Rank Continual Learning", ICLR 2026, arXiv 2602.17559.
Authors' code: github.com/yaoyz96/low-rank-cl, of which only configs/ewclora/imagenet-a.json was at hand (d007ef5). The
code was read in copies on 2026-11-30, the fork marawangamal/low-rank-cl (3ca77fc, 4ad5192) and Panpz202006/LoSCO
(3578902), which agree, and compared with the latter (docs/verified.md). Of the paper we had the abstract and notes of
others, so no equation numbers are given. Prior: elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv
1612.00796).

A penalty on A and B apart does not know what their product does. So importance is measured on the weight W itself, of
which only the rows of the branch matter, and the penalty weighs the entries of B A.

    paper                   here
    A, B                    branch.A, branch.B: a new pair for each task, folded into W after it
    v = vec(B A)            branch.delta: how far the task moves W from where it began
    F_i                     DiagonalFisher: the mean over task i's samples of (d loss / d W)^2, entry by entry
    F = sum_{i < t} F_i     memory: a WeightSum for each site
    lambda                  strength
    (lambda / 2) v^T F v    penalty

Departures (from the authors' code, as those copies have it):
- B A is added to the weights, so a task starts from the network in which the one before ended. The code adds A's and
  B's of all tasks, each apart, and their product (B_1 + B_2)(A_1 + A_2) has mixed terms that nobody trained, as large
  as the rest; its accuracies are measured before. On digits that made no difference to accuracy (docs/verified.md).
- F_i is the mean of squared gradients of single samples, as Fisher information is defined. The code squares the
  gradient of a batch's mean loss, which is as many times smaller as the batch has samples if their gradients have
  nothing in common; on digits it was 9 to 23 times smaller for 128. Its `lambda`, 1e7 with batches of 128, therefore is
  between 1e5 and 1e6 here.
- As in the code, gradients are those of the true labels by the task's own head among its own classes (the empirical
  Fisher), on augmented training samples, once. F_i is measured after the branch is folded, which changes no gradient.
- F is a plain sum; the factor `gamma` on older terms is 1 in the published configuration, and is not here.
- Key and value share one A, as in this package's other methods, and the training settings are those of `seq-lora`. The
  code has one A each: `sites=("key", "value")`, and Adam at 5e-4, heads at 5e-3, a cosine to 0, 20 epochs for
  CIFAR-100, 10 for ImageNet-A.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, Site, merge
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.memory.weight_sums import WeightSum, site_key
from lamella.methods.shared.fishers import diagonal_fishers
from lamella.methods.shared.own_heads import OwnHeads, factors
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["EWCLoRA"]


class EWCLoRA(OwnHeads):
    """EWC-LoRA, with this package's settings of training.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of each task's branches; see `LoRA`.
        training: how the task's branches and head are trained; see `Training`.
        strength: lambda, the weight of the penalty; at least 0, and 0 leaves it out.

    Raises:
        ValueError: a value is not allowed.
    """

    merges = True
    needs = frozenset({"product"})
    own_meanings = frozenset({"strength"})

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(schedule="inflora-code"),
        strength: float = 1e5,
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        if not strength >= 0:
            raise ValueError(f"strength {strength} is below 0; it weighs a penalty, and 0 leaves it out")
        self.strength = strength
        self.memory = nn.ModuleDict({site_key(site): WeightSum(site) for site in self.sites})

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        number = len(self.heads)
        branches = self.grow_new("new", generator(self.seed, "lora", number), task, fit)
        penalty = (lambda: self.penalty(branches)) if number and self.strength else None
        self.train_head(task, fit, factors(branches), penalty=penalty)
        merge(self.sites, "new")  # W <- W + B A
        fishers = diagonal_fishers(fit, task.train, self.features, self.heads[number], self.sites)
        for site, fisher in zip(self.sites, fishers, strict=True):
            self._importance(site).add(fisher.mean)

    def penalty(self, branches: Sequence[Branch]) -> Tensor:
        """Return lambda / 2 times the sum of F (B A)^2 over all entries and sites.

        Args:
            branches: the new branches, in the order of the sites.
        """
        total = torch.zeros((), device=branches[0].A.device)
        # Autocast would round the product, whose entries are small, to bfloat16.
        with torch.autocast(total.device.type, enabled=False):
            for site, branch in zip(self.sites, branches, strict=True):
                moved = branch.delta(site.layer.weight.shape)
                total = total + (self._importance(site).total * moved.square()).sum()
        return self.strength / 2 * total

    def _importance(self, site: Site) -> WeightSum:
        return cast(WeightSum, self.memory[site_key(site)])
