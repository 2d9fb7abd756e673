"""GainLoRA: each branch has a gate, which opens for samples of its own task and is shut for those of older ones.

"Gated Integration of Low-Rank Adaptation for Continual Learning of Language Models", NeurIPS 2025, arXiv 2505.15424, by
InfLoRA's authors. Authors' code: github.com/liangyanshuo/gainlora, of which the trainer was read at commit 956a228 on
2026-11-30, and the network in a copy (nnminh322/Continual 069b74f). Prior: GPM (Saha et al. 2021); InfLoRA.

    y = W x + sum_i a_i B_i A_i x,   a_i = g_i(sample)

    paper                           here
    B_t, A_t (InfLoRA's design)     branch.A, fixed: reduces; branch.B, trained: expands. See inflora.py
    p_0 = Pool(Token(x))            pooled: the mean over tokens of what the first adapted layer reads
    G_{t,1} .. G_{t,L+1}            Gate.matrices, with L = 2; gates.py has g
    M_{t,l}                         reads[l]: a Subspace of what matrix l reads of old samples
    G_{t,l} <- G_{t-1,l}, l <= L    Gate.start, which also makes G_{t,L+1} orthogonal to M_{t,L+1}: so a_t = 0 on old x
    Delta G_{t,l} orthogonal M      ProjectedSteps

Of the paper we know summaries. The code agrees in depth (L = 2), width and SiLU of the gates, in f, in what is
protected of which matrix, and in projecting whole steps of the optimiser.

Departures (from the authors' code [c]):
- A gate is f(G_3 p_2), as summaries of the paper have it; the code's is f(4 cos(G_3, p_2)), so that the length of G_3
  does not matter: `gate_form = "cosine"` [c].
- After each projected step the code gives every row of a matrix the length that it had after the step before its
  projection, which changes what G_1 and G_2 give for old samples: its gates do not stay shut exactly, ours do [c].
- p_0 is a mean of the first adapted layer's inputs, which are normalised embeddings in most networks, and is divided by
  its root mean square. In the code it is the sum of the embeddings of the prompt, divided by the length of the batch
  with its padding, so that gates depend on the other samples of a batch [c].
- Of an answer, p_0 sees what stands before its first target token, as a model does that is asked. A plain text is
  known by its first token alone, so its gates are the same for all texts. Of a conversation of several turns, p_0 is
  that of the first prompt in training, and that of all turns so far when the model is asked to go on.
- G_3 starts at random in the free directions. The code's starts as the free direction that has most energy in what G_3
  reads of the new task's samples; in copies of a later version only the first gate's does. G_1 and G_2 of the first
  gate start 2.4 times longer than the code's [c].
- The code protects more of the gates' inputs with each task, and of their second moment: `energy_of = "moment"`,
  `horizon = 15` and `gate_energy = 0.995` are its settings, for branches with `energy = 0.995` [c]. Of the first task
  our gates protect one direction more.
- Branches stay beside the weights, for their gates [c]. InfLoRA's A are designed under the older gated branches, as in
  the code at that commit; in copies of a later version A is random in the free directions [c].
- The code counts padding in the second moments, adapts query and value of T5 (rank 4, alpha 32), trains for 100 epochs,
  and takes the weights that were best on its validation part, which was the test part at first, as its README says [c].
- On classes each task trains a head of its own, and gates weigh features as they weigh logits of tokens.
"""

from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import using, watch
from lamella.adapters.tokens import mean_over_tokens
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.answer_tokens import before_targets
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.gates import FORMS, Gate
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
        horizon: the number of tasks with which this share and that of gates grow; see InfLoRA.
        energy_of: the matrix whose squared singular values count as energy, for branches and gates: "data" (the inputs)
            or "moment" (their second moment); see InfLoRA.
        gate_width: the rows of a gate's first matrix, at least 1.
        gate_energy: the share of the energy of what each matrix of a gate reads that is protected after the first task;
            above 0, at most 1.
        gate_form: what a gate computes with its last row: "product", or "cosine", as in the authors' code.

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
        gate_form: str = "product",
    ) -> None:
        super().__init__(backbone, seed, training, lora, EnergyRule(energy, energy_of, horizon))
        if gate_width < 1:
            raise ValueError(f"gate_width {gate_width} is too small; give at least 1, such as 100")
        if not 0 < gate_energy <= 1:
            raise ValueError(f"gate_energy {gate_energy} is outside (0, 1]; 0.99 is usual")
        check_one_of("gate_form", gate_form, FORMS)
        self.gate_rule = EnergyRule(gate_energy, energy_of, horizon)
        self.gate_width, self.gate_form = gate_width, gate_form
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
        weight = self.sites[0].layer.weight
        return Gate(weight.shape[1], self.gate_width, self.gate_form).to(weight.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        count = sum(key.startswith(f"{prefix}gates.") and key.endswith(".matrices.2") for key in state_dict)
        if count != len(self.gates):
            self.gates = nn.ModuleList(self._new_gate() for _ in range(count))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _name(task: int) -> str:
    return f"task{task}"
