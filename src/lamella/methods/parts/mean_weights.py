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

import torch
from torch import Tensor

from lamella.data.scenario import Task
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.parts.other_weights import OtherWeights, check_own_weights
from lamella.training.fit import Fit

__all__ = ["MeanWeights", "newest_share"]


def newest_share(task: int, power: float) -> float:
    """Return a_t, the share of the newest weights in the mean.

    >>> [newest_share(t, 0) for t in (1, 2, 4)]
    [1.0, 0.5, 0.25]

    Args:
        task: t, the number of tasks that the mean has with the newest one; at least 1.
        power: p, at least 0.
    """
    return (1 + power) / (task + power)


class MeanWeights(OtherWeights):
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
        check_own_weights(base)
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
        self.register_buffer("tasks", torch.zeros((), dtype=torch.int64))

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        mean = self.acting_weights()  # M_{t-1}
        self.trained.exchange()  # W_{t-1} into the layers
        self.base.learn(task, fit)
        self.eval()
        self.tasks += 1
        share = newest_share(int(self.tasks), self.power)
        newest = self.acting_weights()  # W_t
        self.put({name: (1 - share) * (mean[name] - newest[name]) for name in newest})  # M_t - W_t
