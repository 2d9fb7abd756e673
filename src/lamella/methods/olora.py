"""O-LoRA: a low-rank branch for each task, with a penalty on reading directions that an older branch reads.

Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", Findings of EMNLP 2023,
arXiv 2310.14152. Authors' code: github.com/cmnfriend/O-LoRA. Not OLoRA (arXiv 2406.01775), a start for LoRA by QR.

The rows of A span what a branch reads of its input. If the rows of two branches are orthogonal, each ignores what the
other one reads. The loss of task t is cross-entropy + lambda_1 sum_i L(A_i, A_t), over layers and older tasks i. Older
branches are frozen, so of them only the A's are needed.

    paper                           here
    A_t (d_in x r), trained         branch.A, transposed: reduces
    B_t (r x d_out), trained        branch.B, transposed: expands
    A_1 ... A_{t-1} of a layer      ReadRows: their rows, stacked
    O_{i,t} = A_i^T A_t             overlap: one product for all i
    L_orth (eq. 8)                  penalty: "squared" sums O^2, "absolute" |O|
    lambda_1                        orthogonality

Departures (from the paper [p], from the authors' code [c]):
- The default sums |O|, as the code does; `penalty="squared"` is the paper's. The published weight 0.5 belongs to |O|.
- lambda_2, a weight of the norms of the new A's and B's in the paper's appendix, is not here; it is 0 in the first
  scripts of the code.
- Branches are merged after each task, not after the last [p]; the code computes the products of all branches in every
  pass [c]. The result is the same.
- The sites are key and value with one A, as in this package's other methods, so that a table compares equal conditions.
  The paper's are `sites=("query", "value")`.
- Images and a head for each task, not text, with the training settings of `seq-lora`. Scale 1 and no dropout; the code
  has `alpha=32` at rank 8 and `dropout=0.1` [c].
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, Site, merge, module_key
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.memory.resizable import Resizable
from lamella.methods.shared.own_heads import OwnHeads, factors
from lamella.methods.shared.self_distillation import SelfDistillation
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["OLoRA", "ReadRows"]


class ReadRows(Resizable):
    """The rows of the A's that older tasks trained on one site.

    Attributes:
        rows: (older tasks * rank, d_in), in the order of learning.
    """

    resizable = ("rows",)
    for_training = True
    rows: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, width))

    def add(self, A: Tensor) -> None:
        """Append the rows of a trained A (rank, d_in)."""
        self.rows = torch.cat([self.rows.to(A), A.detach()])

    def overlap(self, A: Tensor) -> Tensor:
        """Return the (older tasks * rank, rank) inner products with the rows of A (rank, d_in)."""
        # Autocast would round them to bfloat16, and the penalty is about products that are nearly zero.
        with torch.autocast(A.device.type, enabled=False):
            return self.rows @ A.T


class OLoRA(OwnHeads):
    """O-LoRA, with the authors' weight of the penalty and this package's settings for images.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of each task's branches; see `LoRA`.
        training: how the task's branches and head are trained; see `Training`.
        orthogonality: lambda_1, the weight of the penalty; at least 0, and 0 leaves the penalty out.
        penalty: what is summed over the inner products of new and old rows of A: "absolute" (their absolute values, as
            in the authors' code) or "squared" (their squares, as in the paper).
        distillation: how strongly the answers for old classes are kept; see `SelfDistillation`. O-LoRA does not keep
            them.

    Raises:
        ValueError: a value is not allowed.
    """

    merges = True
    needs = frozenset({"reads A", "trained pair", "one rank"})
    answers = True
    own_meanings = frozenset({"orthogonality"})
    removed: ClassVar[dict[str, Any]] = {"norm_penalty": 0.0}

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(schedule="inflora-code"),
        orthogonality: float = 0.5,
        penalty: str = "absolute",
        distillation: SelfDistillation = SelfDistillation(),
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        check_one_of("penalty", penalty, ("absolute", "squared"))
        if not orthogonality >= 0:
            raise ValueError(f"orthogonality {orthogonality} is below 0; it weighs a penalty, and 0 leaves it out")
        self.orthogonality = orthogonality
        self.penalty = penalty
        self.distillation = distillation.on(backbone)
        self.memory = nn.ModuleDict({_key(site): ReadRows(site.layer.weight.shape[1]) for site in self.sites})

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        branches = self.grow_new("new", generator(self.seed, "lora", len(self.objective)), task, fit)
        penalty = partial(self.penalties, branches)
        self.train_head(task, fit, factors(branches), penalty=penalty, distillation=self.distillation)
        for site, branch in zip(self.sites, branches, strict=True):
            self._read(site).add(branch.A)
        merge(self.sites, "new")  # W <- W + B A

    def penalties(self, branches: Sequence[Branch]) -> Tensor | float:
        """Return lambda_1 sum L(A_i, A_t); 0 for the first task.

        Args:
            branches: the new branches, in the order of the sites.
        """
        total: Tensor | float = 0.0
        for site, branch in zip(self.sites, branches, strict=True):
            read = self._read(site)
            if self.orthogonality and len(read.rows):
                overlap = read.overlap(branch.A)
                size = overlap.abs() if self.penalty == "absolute" else overlap.square()
                total = total + self.orthogonality * size.sum()
        return total

    def rows_read(self, task: int) -> dict[str, Tensor]:
        rank = self.lora.rank
        found: dict[str, list[Tensor]] = {}  # branches are merged, but their A's are kept
        for site in self.sites:
            found.setdefault(site.name, []).append(self._read(site).rows[task * rank :][:rank])
        return {layer: torch.cat(rows) for layer, rows in found.items()}

    def _read(self, site: Site) -> ReadRows:
        return cast(ReadRows, self.memory[_key(site)])


def _key(site: Site) -> str:
    return module_key(f"{site.name}:{site.rows.start}")
