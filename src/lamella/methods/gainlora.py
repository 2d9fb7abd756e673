"""GainLoRA: each branch has a gate, which opens for samples of its own task and is shut for those of older ones.

"Gated Integration of Low-Rank Adaptation for Continual Learning of Language Models", NeurIPS 2025, arXiv 2505.15424, by
InfLoRA's authors. Authors' code: github.com/liangyanshuo/gainlora. Prior: GPM (Saha et al. 2021); InfLoRA.

    y = W x + sum_i a_i B_i A_i x,   a_i = g_i(sample)

    paper                           here
    B_t, A_t (InfLoRA's design)     branch.A, fixed: reduces; branch.B, trained: expands. See inflora.py
    p_0 = Pool(Token(x))            pooled: the mean over tokens of what the first adapted layer reads
    G_{t,1} .. G_{t,L+1}            Gate.matrices, with L = 2; gates.py has g
    M_{t,l}                         reads[l]: a Subspace of what matrix l reads of old samples
    G_{t,l} <- G_{t-1,l}, l <= L    Gate.start, which also makes G_{t,L+1} orthogonal to M_{t,L+1}: so a_t = 0 on old x
    Delta G_{t,l} orthogonal M      ProjectedSteps

Reconstruction: we know the method by summaries of others; neither the paper nor its code was at hand.

Departures:
- p_0 is a mean of the first adapted layer's inputs, which are normalised embeddings in most networks, and not of the
  embeddings themselves; it is divided by its root mean square. It costs no pass through the network.
- Of an answer, p_0 sees what stands before its first target token, as a model does that is asked. A plain text is
  known by its first token alone, so its gates are the same for all texts. Of a conversation of several turns, p_0 is
  that of the first prompt in training, and that of all turns so far when the model is asked to go on.
- Depth (L = 2), width (`gate_width`), SiLU, and how much of what a gate reads is protected (`gate_energy`) are ours.
- Whole steps of the optimiser are projected, not gradients, since Adam's steps leave the subspace otherwise.
- Branches stay beside the weights, for their gates. InfLoRA's A are designed under the older gated branches.
- On classes each task trains a head of its own, and gates weigh features as they weigh logits of tokens.
"""

from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import using, watch
from lamella.adapters.tokens import mean_over_tokens
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.answer_tokens import before_targets
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.gates import Gate
from lamella.memory.subspace import SecondMoment, Subspace
from lamella.methods.shared.free_directions import EnergyRule, ReadsFreeDirections
from lamella.training.fit import Fit
from lamella.training.projected_steps import ProjectedSteps
from lamella.training.recipe import LoRA, Training

__all__ = ["GainLoRA"]


class GainLoRA(ReadsFreeDirections):
    """InfLoRA's branches with gates, for language models in the first place.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of each task's branches; see `LoRA`.
        training: how the task's B, gate and head are trained; see `Training`.
        energy: the share of the inputs' energy that is protected after the first task; above 0, at most 1.
        horizon: the number of tasks with which this share grows; see InfLoRA.
        energy_of: the matrix whose squared singular values count as energy: "data" (the inputs) or "moment" (their
            second moment); see InfLoRA.
        gate_width: the rows of a gate's first matrix, at least 1.
        gate_energy: the share of the energy of what each matrix of a gate reads that is protected; above 0, at most 1.

    Raises:
        ValueError: a value is not allowed.
    """

    needs = frozenset({"own A", "reads A", "product", "frozen weight"})
    answers = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(),
        energy: float = 0.95,
        horizon: int | None = None,
        energy_of: str = "data",
        gate_width: int = 100,
        gate_energy: float = 0.99,
    ) -> None:
        super().__init__(backbone, seed, training, lora, EnergyRule(energy, energy_of, horizon))
        if gate_width < 1:
            raise ValueError(f"gate_width {gate_width} is too small; give at least 1, such as 100")
        if not 0 < gate_energy <= 1:
            raise ValueError(f"gate_energy {gate_energy} is outside (0, 1]; 0.99 is usual")
        self.gate_rule = EnergyRule(gate_energy, "data", None)
        self.gate_width = gate_width
        d = self.sites[0].layer.weight.shape[1]
        self.reads = nn.ModuleList(Subspace(width) for width in (d, gate_width, d))
        self.gates = nn.ModuleList()

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        number = len(self.gates)
        branches = self.grow_designed(self.moments_of(task, fit, "moment-before"), _name(number))
        gate = self._new_gate()
        gate.start(cast(Gate, self.gates[-1]) if number else None, self.spaces, generator(self.seed, "gate", number))
        self.gates.append(gate)
        steps = ProjectedSteps(gate.projections(self.spaces))
        weights = [*(branch.B for _, branch in branches), *gate.parameters()]
        self.train_head(task, fit, weights, before_step=steps.before, after_step=steps.after)
        self.protect(self.moments_of(task, fit, "moment-after"))
        self._protect_gate(gate, task, fit)

    def acting(self, x: Samples) -> AbstractContextManager[None]:
        """Every branch acts with its own gate."""
        p = self.pooled(x) if len(self.gates) else torch.empty(0)
        return using(self.sites, {_name(t): gate(p) for t, gate in enumerate(self.gates)})

    @torch.no_grad()
    def pooled(self, x: Samples) -> Tensor:
        """p_0 of n samples, (n, d) with a root mean square of 1; what the first adapted layer reads has no adapter."""
        first, seen = self.sites[:1], list[Tensor]()
        with watch(first, lambda _: lambda h: seen.append(mean_over_tokens(h.float())), padding_too=True):
            self.backbone.show(before_targets(x), first)
        return seen[0] / seen[0].square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)

    @property
    def spaces(self) -> list[Subspace]:
        """By matrix of a gate, what it reads of old samples."""
        return [cast(Subspace, space) for space in self.reads]

    @property
    def one_weight(self) -> bool:
        return False  # gates differ by sample

    def adapters_of(self, task: int) -> tuple[str, ...]:
        return (_name(task),)

    def _protect_gate(self, gate: Gate, task: Task, fit: Fit) -> None:
        """Protect what the matrices of gates read of the task that was learned."""
        moments = nn.ModuleDict({str(k): SecondMoment(space.width) for k, space in enumerate(self.spaces)})

        def observe(x: Samples, _: Tensor) -> None:
            for moment, read in zip(moments.values(), gate.inputs(self.pooled(x)), strict=True):
                moment(read)

        fit.scan(task.train, observe, augment=True, keep=dict(moments.items()), any_order=True, name="gate-moments")
        number = len(self.gates) - 1
        for space, moment in zip(self.spaces, moments.values(), strict=True):
            self.gate_rule.protect(space, cast(SecondMoment, moment).mean, number, first=False)

    def _new_gate(self) -> Gate:
        return Gate(self.sites[0].layer.weight.shape[1], self.gate_width).to(self.sites[0].layer.weight.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        count = sum(key.startswith(f"{prefix}gates.") and key.endswith(".matrices.2") for key in state_dict)
        if count != len(self.gates):
            self.gates = nn.ModuleList(self._new_gate() for _ in range(count))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _name(task: int) -> str:
    return f"task{task}"
