"""Running mean of weights: predictions use the mean of the weights after each task, training goes on from the newest.

A method that adapts the same layers in task after task ends with the weights of the last one, which suit old tasks
less and less. This part keeps a mean of the weights that the adapted layers had after each task, and predicts with it.
The training is that of the method alone, to the last bit: the next task starts from the newest weights, not from the
mean. Prediction costs one pass, as without it, since the mean is one weight a layer too.

    symbol          here
    W_t             the weight of an adapted layer after task t: what is folded into it, and the branches that act
    M_t             the mean, which predicts: M_1 = W_1, M_t = M_{t-1} + a_t (W_t - M_{t-1})
    a_t             `newest_share`: (1 + p) / (t + p)
    p               power: 0 weighs all tasks alike (a_t = 1 / t); the share of W_i in M_t grows with i about as i^p

Sources: averages of the iterates of stochastic gradient descent: Ruppert 1988; Polyak & Juditsky, SIAM J. Control and
Optimization 30, 1992. Along one training of a network: Izmailov et al., "Averaging Weights Leads to Wider Optima and
Better Generalization", UAI 2018, arXiv 1803.05407. The weights with a power: Shamir & Zhang, "Stochastic Gradient
Descent for Non-smooth Optimization: Convergence Results and Optimal Averaging Schemes", ICML 2013, arXiv 1212.1824.

Departures:
- One iterate is a finished task, not a step of the optimiser. Heads are not averaged: each was trained once.
- What is stored in a layer is W - (W_t - M_t), where W is the layer's own weight without branches, so that the branches
  beside it make M_t of it, and every export has M_t. W itself is stored beside it, to go on from.
- A constant share of the newest weights (an exponential mean) is not here: it forgets the first tasks by a fixed
  factor with every further one, and would need the number of tasks to be chosen.

Alignment on top of it measures drift from M_{t-1} to M_t, in as many passes as without. What the method itself measures
of its samples, such as the second moments of InfLoRA, belongs to training, and is measured under W_t.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.acting import acting_branches, added
from lamella.adapters.adapter import Adapted, Site, module_key
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.resizable import Resizable
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.shared.heads import Head
from lamella.methods.shared.plain_classifier import PlainClassifier
from lamella.training.fit import Fit

__all__ = ["MeanWeights", "TrainedWeights", "newest_share"]


def newest_share(task: int, power: float) -> float:
    """Return a_t, the share of the newest weights in the mean.

    >>> [newest_share(t, 0) for t in (1, 2, 4)]
    [1.0, 0.5, 0.25]

    Args:
        task: t, the number of tasks that the mean has with the newest one; at least 1.
        power: p, at least 0.
    """
    return (1 + power) / (task + power)


class TrainedWeights(Resizable):
    """What is not in the layers at the moment: the weights to train from, or those to predict with.

    It has of each layer the output rows from the first to the last that a site writes to.

    Args:
        sites: the sites of the layers.
    """

    for_training = True
    still_in_training = True

    def __init__(self, sites: tuple[Site, ...]) -> None:
        super().__init__()
        self.layers: dict[str, Adapted] = {site.name: site.layer for site in sites}
        rows = {name: [site.rows for site in sites if site.name == name] for name in self.layers}
        self.rows = {name: slice(min(r.start for r in own), max(r.stop for r in own)) for name, own in rows.items()}
        for name in self.layers:
            self.register_buffer(module_key(name), self.held(name).clone())

    def held(self, name: str) -> Tensor:
        """The rows of a layer's own weight, (rows, ...), which share its memory."""
        return self.layers[name].weight.detach()[self.rows[name]]

    def apart(self, name: str) -> Tensor:
        """The rows that are kept beside it, (rows, ...)."""
        return cast(Tensor, getattr(self, module_key(name)))

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange what is in the layers and what is beside them."""
        for name in self.layers:
            inside = self.held(name).clone()
            self.held(name).copy_(self.apart(name))
            self.apart(name).copy_(inside)


class MeanWeights(MethodOnBase):
    """A method on top of another one, which predicts with the running mean of its adapted weights.

    Args:
        base: a method whose adapters are one weight a layer, and change in every task; it learns exactly as it would
            alone. Other parts are carried on top of this one.
        seed: the seed of every random draw; this part draws nothing.
        power: p, how much more newer tasks weigh; at least 0. At 0 all tasks weigh alike, at 1 they weigh 1, 2, 3, ...,
            and with a large number the newest weights are used alone.

    Attributes:
        tasks: int64, the number of tasks in the mean.

    Raises:
        ValueError: the power is negative, or the base has no weights of which a mean could be taken.
    """

    tasks: Tensor

    def __init__(self, base: Method, *, seed: int = 0, power: float = 0.0) -> None:
        super().__init__(base, seed)
        if not 0 <= power < float("inf"):
            raise ValueError(f"power {power} must be 0 (all tasks weigh alike) or more (newer ones weigh more)")
        if isinstance(base, MethodOnBase):
            raise ValueError(
                f"mean_weights is taken of a method alone, and {type(base).__name__} is built on another one; name it "
                "before other parts, as in inflora+mean_weights+align"
            )
        if not base.one_weight:
            raise ValueError(
                "mean_weights needs adapters that change in every task and act alike on all "
                f"{base.backbone.transform.noun}s; {type(base).__name__} has none in this form, so leave mean_weights "
                "out, or choose another method, such as inflora, olora or seq-lora"
            )
        self.power = power
        self.merges = True
        self.trained = TrainedWeights(tuple(self.sites))
        self.register_buffer("tasks", torch.zeros((), dtype=torch.int64))

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        mean = self._acting()  # M_{t-1}
        self.trained.exchange()  # W_{t-1} into the layers
        self.base.learn(task, fit)
        self.eval()
        self.tasks += 1
        share = newest_share(int(self.tasks), self.power)
        newest = self._acting()  # W_t
        self._put({name: (1 - share) * (mean[name] - newest[name]) for name in newest})  # M_t - W_t

    @torch.no_grad()
    def _acting(self) -> dict[str, Tensor]:
        """By layer, the rows of the weight that it acts as now, float64 on the CPU."""
        layers, example = self.trained.layers, self.backbone.example(1)
        branches = acting_branches(layers, lambda: self.base.features(example))
        weights = {name: layer.weight.cpu().double() for name, layer in layers.items()}
        return {
            name: (weight + added(weight, branches[name]))[self.trained.rows[name]] for name, weight in weights.items()
        }

    @torch.no_grad()
    def _put(self, differences: Mapping[str, Tensor]) -> None:
        """Keep what is in the layers beside them, and add these differences to what is in the layers."""
        for name, difference in differences.items():
            held = self.trained.held(name)
            self.trained.apart(name).copy_(held)
            held.copy_(held.cpu().double() + difference)

    @contextmanager
    def base_alone(self) -> Generator[Method]:
        """Within this context the base has the weights that were trained last, as it would alone."""
        self.trained.exchange()
        try:
            yield self.base
        finally:
            self.trained.exchange()

    # A prediction is the base's, with the weights that are in the layers.

    def predict(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        return self.base.predict(x, task)

    def classify(self, features: Tensor) -> Tensor:
        return self.base.classify(features)

    def features_and_logits(self, x: Samples) -> tuple[Tensor, Tensor]:
        return self.base.features_and_logits(x)

    def features_and_readouts(self, x: Samples) -> tuple[Tensor, Mapping[str, Tensor]]:
        """(n, d) features and all `readouts`, from one pass with the mean and one with the newest weights.

        The pass with the mean comes last, for what watches the layers.
        """
        with self.base_alone() as base:
            newest = base.readouts(x)
        features, logits = self.base.features_and_logits(x)
        return features, self.with_own(logits, newest)

    def typicality(self, features: Tensor, logits: Tensor) -> Tensor:
        return self.base.typicality(features, logits)

    @property
    def by_features(self) -> bool:
        return self.base.by_features

    def linear_classifier(self) -> nn.Linear:
        return self.base.linear_classifier()

    def plain_classifier(self) -> PlainClassifier:
        return self.base.plain_classifier()

    def head_of(self, task: int) -> Head:
        return self.base.head_of(task)
