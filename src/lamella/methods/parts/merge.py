"""Merged adapters: predictions use one update, merged by a rule from what each task has added to the weights.

After each task, what it changed in the adapted layers is kept as a pair of thin factors, and all pairs are merged
anew. Predictions use the weights before the first task plus the merged update, in one pass. Which rules there are, and
what is exact about them, docs/combining.md says.

    symbol          here
    W_0             the weights of the adapted layers before the first task
    W_t             those after task t, as the method trains them: what is folded, and the branches that act
    D_t             what task t has added, W_t - its start, in its numerical rank
    W_0 + M_t       what predicts, M_t = rule(D_1, ..., D_t)

A task starts from the newest weights (`start = "newest"`, as the method would alone; its training is the same to the
last bit), or from the pre-trained ones (`start = "pretrained"`), as the rules were made for: then all D_t are updates
of the same weights. With the rule "sum" and start "newest" the prediction is that of the method alone.

A method with an expert for each task that is chosen for each sample, such as color, trains every expert from the same
start anyway; under this part its experts become one, and there is no choice: one pass, and all heads.

Sources: the rules name theirs in adapters/merging.py. Branches of tasks that are merged as they come: Tang et al.,
arXiv 2501.09522; with tasks in a row: Marczak et al., "MagMax", ECCV 2024, arXiv 2407.06322.

Departures:
- Heads are not merged: each was trained once, on its own task's features. Alignment on top sees merged features.
- The rule "regmean" needs second moments of every task's inputs, which are not kept here, and "weighted" a weight for
  each task of a stream whose length is unknown; both are refused.

Memory: two copies of the adapted rows (the weights of the method, and W_0), and for each task r (d_out + d_in) numbers
a layer, where r is the rank of what the task added. Pairs and copies are needed for learning, not for predictions.
"""

from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.acting import ActingBranch, added
from lamella.adapters.adapter import module_key, using
from lamella.adapters.merging import Merging, merged
from lamella.adapters.pairs import Pair, low_rank
from lamella.common.checks import check_one_of
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.resizable import Resizable
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.parts.other_weights import OtherWeights, TrainedWeights, check_own_weights
from lamella.methods.shared.heads import Heads, only_columns
from lamella.methods.shared.plain_classifier import PlainClassifier
from lamella.training.fit import Fit

__all__ = ["Merged", "TaskPairs"]


class TaskPairs(Resizable):
    """What each task has added to one layer.

    Attributes:
        A: (sum of ranks, d_in), in the order of learning.
        B: (rows, sum of ranks).
        ranks: (tasks,) int64.
    """

    resizable = ("A", "B", "ranks")
    for_training = True
    A: Tensor
    B: Tensor
    ranks: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("A", torch.zeros(0, width))
        self.register_buffer("B", torch.zeros(rows, 0))
        self.register_buffer("ranks", torch.zeros(0, dtype=torch.int64))

    def add(self, pair: Pair) -> None:
        """Append the pair of a new task."""
        self.A = torch.cat([self.A, pair.A.to(self.A)])
        self.B = torch.cat([self.B, pair.B.to(self.B)], 1)
        self.ranks = torch.cat([self.ranks, self.ranks.new_tensor([len(pair.A)])])

    def pairs(self) -> list[Pair]:
        """The pairs, one a task, on the CPU."""
        ranks = self.known("ranks")
        return [Pair(A, B) for A, B in zip(self.A.cpu().split(ranks), self.B.cpu().split(ranks, 1), strict=True)]


class Merged(OtherWeights):
    """A method on top of another one, which predicts with one merged update in place of what its tasks added.

    Args:
        base: a method whose adapters are one weight a layer and change in every task, or one that keeps an expert for
            each task and chooses for each sample, with a head for each task. Other parts are carried on top.
        seed: the seed of every random draw; only the rule "dare" draws.
        merging: the rule and its numbers; see `Merging`.
        start: what a task is trained from: "newest" (the weights after the task before) or "pretrained" (those before
            the first task). Methods with experts have the second anyway.

    Raises:
        ValueError: a value is not allowed, or the base has no updates that could be merged.
    """

    def __init__(self, base: Method, *, seed: int = 0, merging: Merging = Merging(), start: str = "newest") -> None:
        check_one_of("start", start, ("newest", "pretrained"))
        if merging.rule in ("weighted", "regmean"):
            needs = "a weight for each task" if merging.rule == "weighted" else "second moments of all tasks' inputs"
            raise ValueError(f"rule '{merging.rule}' needs {needs}, which [method.merge] has not; choose another rule")
        check_own_weights(base)
        if isinstance(base, MethodOnBase):
            raise ValueError(
                f"merge is for a method alone, and {type(base).__name__} is built on another one; name it before other "
                "parts, as in seq-lora+merge+align"
            )
        experts = base.routed and type(base).adapters_of is not Method.adapters_of and _heads(base) is not None
        if not (base.one_weight or experts):
            raise ValueError(
                "merge needs adapters that change in every task, or one expert and one head for each task; "
                f"{type(base).__name__} has none in this form, so leave merge out, or choose another method, such as "
                "seq-lora, olora or color"
            )
        if getattr(getattr(base, "lora", None), "form", "lora") == "dora":
            raise ValueError("merge is for updates of low rank, and those of DoRA are not; use method.form = 'lora'")
        super().__init__(base, seed)
        self.merging, self.start, self.experts = merging, start, experts
        self.routed = False
        self.begun = TrainedWeights(tuple(self.sites))  # W_0; it is never exchanged
        layers = self.trained.layers
        self.updates = nn.ModuleDict({module_key(n): TaskPairs(*self.trained.held(n).flatten(1).shape) for n in layers})

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        self.trained.exchange()  # the base's own weights into the layers
        number = len(self._of(next(iter(self.trained.layers))).ranks)
        if self.start == "pretrained" and not self.experts:
            self._start_again()
        before = None if self.experts else self.acting()
        self.base.learn(task, fit)
        self.eval()
        newest = self._start() if before is None else self.acting()
        first = self._start()
        for name, weight in first.items():
            change = self._expert(number, name) if before is None else newest[name] - before[name]
            self._of(name).add(low_rank(change.flatten(1), weight.flatten(1)))
        total = self._merged()
        self.put({name: first[name] + total[name].view_as(first[name]) - newest[name] for name in first})

    def _of(self, name: str) -> TaskPairs:
        return cast(TaskPairs, self.updates[module_key(name)])

    def _start(self) -> dict[str, Tensor]:
        """By layer, W_0 (rows, ...), float64 on the CPU."""
        return {name: self.begun.apart(name).cpu().double() for name in self.begun.layers}

    @torch.no_grad()
    def _start_again(self) -> None:
        """Change what is in the layers so that they act as they did before the first task."""
        acting = self.acting()
        for name, first in self._start().items():
            held = self.trained.held(name)
            held.copy_(held.cpu().double() + first - acting[name])

    @torch.no_grad()
    def _expert(self, task: int, name: str) -> Tensor:
        """Return what the expert of a task adds to a layer, (rows, ...) in float64 on the CPU."""
        layer = self.trained.layers[name]
        own = [ActingBranch(a, branch, 1.0) for a in self.base.adapters_of(task) for branch in layer.of(a)]
        return added(layer.weight, own)[self.trained.rows[name]]

    def _merged(self) -> dict[str, Tensor]:
        """By layer, M_t (rows, inputs), float64 on the CPU."""
        pairs = {name: self._of(name).pairs() for name in self.trained.layers}
        tasks = range(len(next(iter(pairs.values()))))
        found = merged([{n: own[t] for n, own in pairs.items()} for t in tasks], self.merging, seed=self.seed)
        return {name: pair.delta() for name, pair in found.items()}

    def features(self, x: Samples) -> Tensor:
        """(n, d) features of the backbone with the merged update."""
        if not self.experts:
            return self.base.features(x)
        with using(self.sites, ()):
            return self.backbone(x)

    def predict(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        if not self.experts:
            return self.base.predict(x, task)
        return only_columns(self.classify(self.features(x)), self.classes, task)

    def classify(self, features: Tensor) -> Tensor:
        return self._heads_of_experts()(features) if self.experts else self.base.classify(features)

    def features_and_logits(self, x: Samples) -> tuple[Tensor, Tensor]:
        if not self.experts:
            return self.base.features_and_logits(x)
        features = self.features(x)
        return features, self.classify(features)

    @property
    def by_features(self) -> bool:
        return self.experts or self.base.by_features

    def typicality(self, features: Tensor, logits: Tensor) -> Tensor:
        return Method.typicality(self, features, logits) if self.experts else self.base.typicality(features, logits)

    def linear_classifier(self) -> nn.Linear:
        return self._heads_of_experts().as_linear() if self.experts else self.base.linear_classifier()

    def plain_classifier(self) -> PlainClassifier:
        if self.experts:
            return PlainClassifier.of_linear(self.linear_classifier())
        return self.base.plain_classifier()

    def _heads_of_experts(self) -> Heads:
        return cast(Heads, _heads(self.base))


def _heads(base: Method) -> Heads | None:
    heads = base._modules.get("heads")
    return heads if isinstance(heads, Heads) and heads.width == base.backbone.width else None
