"""DualLoRA, a reconstruction: one adapter that old tasks cannot feel, one that is gated by the image.

"Replay-Free Continual Low-Rank Adaptation with Dynamic Memory", arXiv 2411.00623, v4 (2026); v1 (2024) was called "Dual
Low-Rank Adaptation for Continual Learning with Pre-Trained Models". Sony AI and UT Austin.

**Reconstruction**: we know the abstracts and summaries by others, neither the paper's equations nor any code. What they
say: two adapters work in parallel in each layer, an orthogonal one for stability and a residual one, which lives on
task-specific bases, for plasticity; at test time the residual one is scaled by the similarity of the image to the
bases; these also predict the task with a confidence, by which the outputs are calibrated; one pass, no old images.

    y = W x + O x + sum_i gamma_i(x) R_i x
    O = B A, A Psi = 0              adapter "orthogonal": (W + B A) x = W x for x in span Psi; merged after the task
    R_t = B C Phi^T                 adapter "residual-t": A = C Phi^T; stays beside the weight, for its gate
    Psi_t = [Phi_1 | .. | Phi_t]    signatures.py, as rho, rho_bar, s, pi, conf, beta (calibration) and tau
    gamma_i = min(1, rho_i / rho_bar_i)

Prior work: the protected directions are GPM's (Saha, Garg & Roy, ICLR 2021); heads and training settings InfLoRA's.

Departures: each of these is our choice, because the paper's was not to be had.
- Adapters on key and value rows, rank 10 each (`sites`, `rank`, `residual_rank`); O is merged, R never.
- Bases come from class tokens (a summary says so), by energy of raw features, from all training images (`basis`,
  `energy`, `horizon`). Where class tokens meet, as before the first block, later blocks are empty. Tokens of patches
  stay free to move; `basis="tokens"` holds them too, and old features drift far less (docs/results.md).
- R_t reads the block that the newest finished task added (`residual`); there is none in the first task.
- A is projected after each step, and its gradient before: under Adam a projected gradient alone leaks.
- R_t is gated by the block of task t itself, known only after its training, which therefore has gamma_t = 1; earlier
  R_i keep their gates, through which no gradient flows (`gate`). An empty block leaves its gate open.
- The similarity is always that of the class token at each layer, one number an image, whatever `basis` is.
- Scores, confidence and the term added to the logits (`calibration`, `temperature`).
- Each task trains a head on its own classes only; a class that comes back belongs to the last task that had it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, merge
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.inputs import Inputs, check_basis, gather
from lamella.memory.signatures import Calibration, Signature, Signatures, protected_share
from lamella.methods.shared.own_heads import OwnHeads, factors
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["DualLoRA"]

Allowed = list[tuple[Branch, Callable[[Tensor], Tensor]]]
"""Branches, each with the projection that the rows of its A are held to."""


class DualLoRA(OwnHeads):
    """An orthogonal adapter, gated residual adapters, and calibrated heads.

    Args:
        backbone: a transformer with a class token; its layers of the roles in `sites` are adapted.
        seed: of all draws.
        lora: see `LoRA`; `rank` is that of O, less where fewer directions are free.
        training: see `Training`; of the adapters and the task's head.
        residual_rank: of each R; less where the block that it reads has fewer directions.
        orthogonal: whether there is an O.
        residual: what R_t reads: "prev" (the newest block), "all_prev", or "none" for no R.
        gate: "normalised", "cosine" (rho as it is) or "off".
        calibration: beta; 0 leaves the logits as they are.
        temperature: tau.
        basis: "class_token", "tokens" or "attention_pooled".
        energy: the share of the inputs' energy to protect after the first task, 0..1.
        horizon: the number of tasks T, with which the share grows as energy + (1 - energy) t / T; "auto" is that of the
            scenario. The share is constant where left out.
    """

    merges = True
    removed: ClassVar[dict[str, Any]] = {"score_layers": 1.0}

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(schedule="inflora-code"),
        residual_rank: int = 10,
        orthogonal: bool = True,
        residual: str = "prev",
        gate: str = "normalised",
        calibration: float = 1.0,
        temperature: float = 0.1,
        basis: str = "class_token",
        energy: float = 0.95,
        horizon: int | None = None,
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        if residual_rank < 1:
            raise ValueError(f"residual_rank {residual_rank} is too small; a branch needs a rank of at least 1")
        check_one_of("residual", residual, ("prev", "all_prev", "none"))
        check_one_of("gate", gate, ("normalised", "cosine", "off"))
        if not orthogonal and residual == "none":
            raise ValueError("without O (orthogonal = false) and R (residual = 'none') nothing is adapted; keep one")
        protected_share(energy, 0, horizon)  # refuses bad values before anything is learned
        check_basis(backbone.model, self.sites, basis)
        self.calibrate = Calibration(calibration, temperature)
        self.residual_rank = residual_rank
        self.orthogonal = orthogonal
        self.residual = residual
        self.gate = gate
        self.calibration = calibration
        self.basis = basis
        self.energy = energy
        self.horizon = horizon
        self.free_rank = lora.rank if orthogonal else None  # R_t is kept away from nothing
        self.signatures = Signatures(self.sites, gate)
        self.register_load_state_dict_post_hook(_attach_gates)  # branches that come from a file come without

    def features_and_logits(self, x: Samples) -> tuple[Tensor, Tensor]:
        """(n, d) features and (n, classes) logits of one pass: all heads, calibrated by the predicted task."""
        if self.calibration == 0:
            features = self.features(x)
            return features, self.heads(features)
        features = self.signatures.reading(self.features, x)
        last = {c: t for t in range(len(self.heads)) for c in self.heads[t].classes}
        term = self.calibrate.term(self.signatures.scores(), [last[c] for c in self.classes])
        return features, self.heads(features) + term

    def linear_classifier(self) -> nn.Linear:
        return super().linear_classifier() if self.calibration else self.heads.as_linear()

    def adapters_of(self, task: int) -> tuple[str, ...]:
        return (f"residual-{task}",)

    def protected(self) -> dict[str, Signature]:
        return {layer: self.signatures[layer] for layer in dict.fromkeys(site.name for site in self.sites)}

    def choose_task(self, x: Samples) -> Tensor:
        """(n,) the task that each image is most likely from, in the order of learning."""
        self.signatures.reading(self.features, x)
        return self.signatures.scores().argmax(1)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        number = len(self.heads)
        share = protected_share(self.energy, number, self.horizon)
        constrained = self._grow_orthogonal(number) + self._grow_residual(number)
        trained = factors(branch for branch, _ in constrained)
        project = partial(_project_rows, constrained)
        project()
        self.train_head(task, fit, trained, before_step=partial(_project_gradients, constrained), after_step=project)
        if any(site.layer.of("orthogonal") for site in self.sites):
            merge(self.sites, "orthogonal")  # W <- W + O
        self.signatures.extend(self._inputs(task, fit, "inputs-after"), share)
        _attach_gates(self)

    def _inputs(self, task: Task, fit: Fit, name: str) -> dict[str, Inputs]:
        # What the attention reads is checked behind the layers.
        show = self.features if self.basis == "attention_pooled" else lambda x: self.backbone.show(x, self.sites)
        with gather(self.backbone.model, self.sites, self.basis) as inputs:
            fit.scan(task.train, lambda x, y: show(x), name=name)
        return inputs

    def _grow_orthogonal(self, number: int) -> Allowed:
        """O: rows of A outside of everything protected, on each layer where anything is free."""
        open_sites = [(site, s) for site in self.sites if (s := self.signatures[site.name]).dimension < s.width]
        open_sites = open_sites if self.orthogonal else []
        ranks = [min(self.lora.rank, s.width - s.dimension) for _, s in open_sites]
        draws = generator(self.seed, "orthogonal", number)
        branches = self.lora.grow([site for site, _ in open_sites], "orthogonal", draws, rank=ranks)
        return [(branch, s.outside) for branch, (_, s) in zip(branches, open_sites, strict=True)]

    def _grow_residual(self, number: int) -> Allowed:
        """R_t: A = C Phi^T with C drawn as LoRA draws, on each layer where Phi has a direction."""
        reads = [(site, self._reads(site.name, number)) for site in self.sites]
        reads = [(site, Phi) for site, Phi in reads if Phi.shape[1]]
        ranks = [min(self.residual_rank, Phi.shape[1]) for _, Phi in reads]
        branches = self.lora.grow([site for site, _ in reads], f"residual-{number}", rank=ranks)
        draws = generator(self.seed, "residual", number)
        for branch, (_, Phi) in zip(branches, reads, strict=True):
            bound = Phi.shape[1] ** -0.5
            C = torch.empty(branch.rank, Phi.shape[1]).uniform_(-bound, bound, generator=draws)
            branch.A.copy_(C.to(Phi) @ Phi.T)
        return [(branch, _onto(Phi)) for branch, (_, Phi) in zip(branches, reads, strict=True)]

    def _reads(self, layer: str, number: int) -> Tensor:
        """Phi (d, k): the directions that R_t reads on this layer."""
        signature = self.signatures[layer]
        if self.residual == "all_prev":
            return signature.basis
        return signature.block(number - 1 if self.residual == "prev" else -1)


def _onto(Phi: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: (rows @ Phi) @ Phi.T


@torch.no_grad()
def _project_rows(constrained: Allowed) -> None:
    for branch, project in constrained:
        branch.A.copy_(project(branch.A))


@torch.no_grad()
def _project_gradients(constrained: Allowed) -> None:
    for branch, project in constrained:
        if branch.A.grad is not None:
            branch.A.grad.copy_(project(branch.A.grad))


def _attach_gates(method: DualLoRA, _: object = None) -> None:
    """Gate each residual branch by the signature of the task that it was trained in."""
    for site in method.sites if method.gate != "off" else ():
        for task in range(method.signatures.tasks):
            for branch in site.layer.of(f"residual-{task}"):
                branch.gate = method.signatures.gate(site, task)
