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

The rule "regmean" reads the inputs of a task once more after its training, from the weights W_t that were trained on
them (an expert's from the weights with this expert), augmented as in training and without padding. G_t is the mean of
x x^T over these inputs of a layer, so that all tasks weigh alike, whatever their number of samples. D_t is W_t - W_0
for both starts, since this is by how much the model of the task differs: M_t is then the update whose outputs are
nearest to those of each task's own model on its own inputs. Two sums over tasks are enough, of D_i G_i and of G_i.

Sources: the rules name theirs in adapters/merging.py. Branches of tasks that are merged as they come: Tang et al.,
arXiv 2501.09522; with tasks in a row: Marczak et al., "MagMax", ECCV 2024, arXiv 2407.06322.

Departures:
- Heads are not merged: each was trained once, on its own task's features. Alignment on top sees merged features.
- "regmean" does not shrink what is off the diagonal of G, as RegMean's authors do for some networks; directions that
  no task's inputs have get no update.
- The rule "weighted" needs a weight for each task of a stream whose length is unknown, and is refused.

Memory: two copies of the adapted rows (the weights of the method, and W_0), and for each task r (d_out + d_in) numbers
a layer, where r is the rank of what the task added. With "regmean" nothing grows: d_in (d_out + d_in) numbers of 8
bytes a layer, whatever the number of tasks. All of this is needed for learning, not for predictions.
"""

from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.acting import ActingBranch, added
from lamella.adapters.adapter import using
from lamella.adapters.merging import Merging
from lamella.common.checks import check_one_of
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.parts.kept_updates import PairsOfTasks, SumsOnInputs
from lamella.methods.parts.other_weights import OtherWeights, TrainedWeights, check_own_weights
from lamella.methods.shared.heads import Heads, only_columns
from lamella.methods.shared.plain_classifier import PlainClassifier
from lamella.training.fit import Fit

__all__ = ["Merged"]


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

    own_calls = ("merge-",)

    def __init__(self, base: Method, *, seed: int = 0, merging: Merging = Merging(), start: str = "newest") -> None:
        check_one_of("start", start, ("newest", "pretrained"))
        if merging.rule == "weighted":
            raise ValueError(
                "rule 'weighted' needs a weight for each task, which [method.merge] has not; choose another rule"
            )
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
        sums = merging.rule == "regmean"
        self.updates = SumsOnInputs(self.backbone, self.trained) if sums else PairsOfTasks(self.trained)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        self.trained.exchange()  # the base's own weights into the layers
        number = len(self._heads_of_experts()) if self.experts else 0
        if self.start == "pretrained" and not self.experts:
            self._start_again()
        before = None if self.experts else self.acting_weights()
        self.base.learn(task, fit)
        self.eval()
        first = self._start()
        if before is None:
            newest, changes = first, {name: self._expert(number, name) for name in first}
        else:
            newest, on_inputs = self.acting_weights(), isinstance(self.updates, SumsOnInputs)
            changes = {name: newest[name] - (first if on_inputs else before)[name] for name in first}
        self._keep({name: change.flatten(1) for name, change in changes.items()}, first, number, task, fit)
        total = self.updates.merged(self.merging, self.seed)
        self.put({name: first[name] + total[name].view_as(first[name]) - newest[name] for name in first})

    def _keep(self, changes: dict[str, Tensor], first: dict[str, Tensor], number: int, task: Task, fit: Fit) -> None:
        """Keep the updates (rows, inputs) of the newest task."""
        if isinstance(self.updates, PairsOfTasks):
            self.updates.add(changes, {name: weight.flatten(1) for name, weight in first.items()})
            return

        def by_expert(x: Samples) -> Tensor:
            with using(self.sites, self.base.adapters_of(number)):
                return self.backbone(x)

        own = by_expert if self.experts else self.base.features
        self.updates.add(changes, task, fit, own, name=f"{self.own_calls[0]}moments")

    def _start(self) -> dict[str, Tensor]:
        """By layer, W_0 (rows, ...), float64 on the CPU."""
        return {name: self.begun.apart(name).cpu().double() for name in self.begun.layers}

    @torch.no_grad()
    def _start_again(self) -> None:
        """Change what is in the layers so that they act as they did before the first task."""
        acting = self.acting_weights()
        for name, first in self._start().items():
            held = self.trained.held(name)
            held.copy_(held.cpu().double() + first - acting[name])

    @torch.no_grad()
    def _expert(self, task: int, name: str) -> Tensor:
        """Return what the expert of a task adds to a layer, (rows, ...) in float64 on the CPU."""
        layer = self.trained.layers[name]
        own = [ActingBranch(a, branch, 1.0) for a in self.base.adapters_of(task) for branch in layer.of(a)]
        return added(layer.weight, own)[self.trained.rows[name]]

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
