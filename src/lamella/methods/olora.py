"""O-LoRA: a low-rank branch per task, pushed by a penalty to read directions that no older branch reads.

Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", Findings of EMNLP 2023,
arXiv 2310.14152. Authors' code: github.com/cmnfriend/O-LoRA. Not OLoRA (arXiv 2406.01775), a start for LoRA by QR.

The rows of A span what a branch reads of its input. If the rows of two branches are orthogonal, each ignores what the
other one reads. The loss of task t is cross-entropy + lambda_1 sum_i L(A_i, A_t) + lambda_2 |new|, over layers and
older tasks i. Older branches are frozen, so of them only the A's are needed.

    paper                           here
    A_t (d_in x r), trained         branch.A, transposed: reduces
    B_t (r x d_out), trained        branch.B, transposed: expands
    A_1 ... A_{t-1} of a layer      ReadRows: their rows, stacked
    O_{i,t} = A_i^T A_t             overlap: one product for all i
    L_orth (eq. 8)                  penalty: "squared" sums O^2, "absolute" |O|
    lambda_1, lambda_2              orthogonality, norm_penalty

Departures (from the paper [p], from the authors' code [c]):
- The default sums |O|, as the code does; `penalty="squared"` is the paper's. The published weight 0.5 belongs to |O|.
- lambda_2 stands in the paper's appendix only; the code's meaning is taken: the sum of the norms (not squared) of the
  new A's and B's. Its default is 0, as in the first scripts of the code.
- Branches are merged after each task, not after the last [p]; the code multiplies all of them out at every pass [c].
  What is computed is the same.
- Sites are key and value with one A, as in this package's other methods, so that a table compares like with like. The
  paper's are `sites=("query", "value")`.
- Images and a head per task, not text; scale 1, no dropout, and the training settings of `seq-lora`.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, Site, grow, merge, module_key
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.memory.resizable import Growing
from lamella.methods.method import Method
from lamella.methods.shared.heads import Heads
from lamella.training.fit import Fit
from lamella.training.schedules import named_schedule

__all__ = ["OLoRA", "ReadRows"]


class ReadRows(Growing):
    """Rows of the A's that older tasks trained on one site.

    Attributes:
        rows: (older tasks * rank, d_in).
    """

    growing = ("rows",)
    for_training = True
    rows: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, width))

    def add(self, A: Tensor) -> None:
        """Take in a trained A (rank, d_in)."""
        self.rows = torch.cat([self.rows.to(A), A.detach()])

    def overlap(self, A: Tensor) -> Tensor:
        """(older tasks * rank, rank) inner products with the rows of A (rank, d_in)."""
        # Autocast would round them to bfloat16, and the penalty is about products that are nearly zero.
        with torch.autocast(A.device.type, enabled=False):
            return self.rows @ A.T


class OLoRA(Method):
    """O-LoRA, with the authors' weights of the penalties and this package's settings for images.

    Args:
        rank: of a task's branch. sites: roles that carry branches. blocks: only the first so many.
        orthogonality: lambda_1, at least 0. penalty: "absolute" (the authors' code) or "squared" (the paper).
        norm_penalty: lambda_2, at least 0.
        epochs, lr, batch_size, optimizer, schedule: of the branch and the task's head.
        head_start: "uniform" (torch's own) or "zero", better on features of large norm.
    """

    merges = True

    def __init__(
        self, backbone: Backbone, *, seed: int = 0, rank: int = 10, orthogonality: float = 0.5,
        penalty: str = "absolute", norm_penalty: float = 0.0, sites: Sequence[str] = ("key+value",),
        blocks: int | None = None, epochs: int = 20, lr: float = 5e-4, batch_size: int = 128,
        head_start: str = "uniform", optimizer: str = "adam", schedule: str = "as_run",
    ) -> None:  # fmt: skip
        super().__init__()
        if penalty not in ("absolute", "squared"):
            raise ValueError(
                f"penalty '{penalty}' is unknown; use 'absolute' (the authors' code) or 'squared' (the paper)"
            )
        for name, weight in (("orthogonality", orthogonality), ("norm_penalty", norm_penalty)):
            if not weight >= 0:
                raise ValueError(f"{name} {weight} is below 0; it weighs a penalty, and 0 leaves it out")
        self.backbone, self.seed, self.rank = backbone, seed, rank
        self.orthogonality, self.penalty, self.norm_penalty = orthogonality, penalty, norm_penalty
        self.epochs, self.lr, self.batch_size = epochs, lr, batch_size
        self.head_start, self.optimizer, self.schedule = head_start, optimizer, named_schedule(schedule)
        self.sites = backbone.sites(*sites, blocks=blocks)
        self.memory = nn.ModuleDict({_key(site): ReadRows(site.layer.weight.shape[1]) for site in self.sites})
        self.heads = Heads(backbone.width, head_start, seed)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        number = len(self.heads)
        branches = grow(self.sites, "new", self.rank, generator=generator(self.seed, "lora", number))
        head = self.heads.grow(task.classes)

        def loss(x: Tensor, y: Tensor) -> Tensor:  # only this task's classes compete
            return F.cross_entropy(head(self.features(x)), head.columns(y)) + self.penalties(branches)

        factors = [factor for branch in branches for factor in (branch.A, branch.B)]
        fit(task.train, loss, [*factors, *head.parameters()], epochs=self.epochs, lr=self.lr,
            batch_size=self.batch_size, optimizer=self.optimizer, schedule=self.schedule)  # fmt: skip

        for site, branch in zip(self.sites, branches, strict=True):
            self._read(site).add(branch.A)
        merge(self.sites, "new")  # W <- W + B A

    def penalties(self, branches: Sequence[Branch]) -> Tensor | float:
        """lambda_1 sum L(A_i, A_t) + lambda_2 |new|, for the new branches in the order of the sites; 0 where unused."""
        total: Tensor | float = 0.0
        for site, branch in zip(self.sites, branches, strict=True):
            read = self._read(site)
            if self.orthogonality and len(read.rows):
                overlap = read.overlap(branch.A)
                size = overlap.abs() if self.penalty == "absolute" else overlap.square()
                total = total + self.orthogonality * size.sum()
            if self.norm_penalty:
                total = total + self.norm_penalty * (branch.A.norm() + branch.B.norm())
        return total

    def rows_read(self, task: int) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}  # branches are merged, but their A's are kept
        for site in self.sites:
            found.setdefault(site.name, []).append(self._read(site).rows[task * self.rank :][: self.rank])
        return {layer: torch.cat(rows) for layer, rows in found.items()}

    def _read(self, site: Site) -> ReadRows:
        return cast(ReadRows, self.memory[_key(site)])


def _key(site: Site) -> str:
    return module_key(f"{site.name}:{site.rows.start}")
