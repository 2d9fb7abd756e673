"""RanPAC: the choice of lambda, and the sums and weights that two tasks give."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import draw, inputs, learned, relative, tiny, tiny_tasks
from lamella.memory.random_projections import best_ridge
from lamella.methods import METHODS

__all__ = ["rows"]

SETTINGS = [(n, width, noise) for n in (100, 400) for width in (50, 150) for noise in (0.1, 1.0, 10.0)]
TASKS, PROJECTIONS = 2, 64


def rows(checkout: Checkout) -> list[Row]:
    """Compare `Learner.optimise_ridge_parameter` and `Learner.replace_fc` with ours."""
    choose = checkout.take("RanPAC.py", "Learner.optimise_ridge_parameter")
    others = sum(_chooses_another(choose, *setting) for setting in SETTINGS)
    chosen = Row("lambdas that differ", f"{len(SETTINGS)} settings of random projections", others, 0.0)
    return [chosen, *_of_two_tasks(checkout, choose)]


def _chooses_another(choose: Any, n: int, width: int, noise: float) -> bool:
    h = draw(n, width, name="h").relu()
    right = (h @ draw(width, 5, name="rule") + noise * draw(n, 5, name="noise")).argmax(1)
    y = torch.nn.functional.one_hot(right, 5).float()
    cut = int(n * 0.8)
    wide, hot = h.double(), y.double()
    ours, theirs = best_ridge(wide[:cut], hot[:cut], wide[cut:], hot[cut:]), float(choose(None, h, y))
    return abs(math.log10(theirs / ours)) > 0.5  # powers of ten, which may be rounded otherwise


def _of_two_tasks(checkout: Checkout, choose: Any) -> list[Row]:
    hot = checkout.take("utils/toolkit.py", "target2onehot")
    replace = checkout.take("RanPAC.py", "Learner.replace_fc", target2onehot=hot)
    tasks, backbone = tiny_tasks(TASKS), tiny().eval()
    first: Any = METHODS["ranpac"](backbone, projections=PROJECTIONS, adapt="none", ridge=1.0)
    W = first.projection.float()
    classes = 2 * TASKS
    head = SimpleNamespace(weight=torch.nn.Parameter(torch.zeros(classes, PROJECTIONS)))
    network = SimpleNamespace(convnet=backbone, fc=head)
    network.eval = lambda: network
    theirs = SimpleNamespace(_network=network, args={"use_RP": True, "M": PROJECTIONS}, W_rand=W)
    theirs.total_classnum, theirs.is_dil = classes, False
    theirs.Q, theirs.G = torch.zeros(PROJECTIONS, classes), torch.zeros(PROJECTIONS, PROJECTIONS)
    ridges: list[float] = []
    theirs.optimise_ridge_parameter = lambda h, y: ridges.append(float(choose(None, h, y))) or ridges[-1]
    for task in tasks:
        replace(theirs, [(None, inputs(task, backbone), task.train.labels)])
    ours = learned(METHODS["ranpac"](backbone, projections=PROJECTIONS, adapt="none", ridge=ridges[-1]), tasks)
    h = draw(1000, PROJECTIONS, name="test").relu()
    weight = head.weight.detach()
    differ = _right(h, weight.T) != _right(h.double(), ours.solution)
    on = f"{TASKS} tasks of random images, theirs in float32 and ours in float64"
    return [
        Row("G, relative", on, relative(ours.G, theirs.G), 1e-5),
        Row("Q, relative", on, relative(ours.Q, theirs.Q), 1e-5),
        Row("weights, relative", on, relative(ours.solution.T, weight), 1e-2),
        Row("share of predictions that differ", "1,000 random projections", float(differ.float().mean()), 0.005),
    ]


def _right(h: Tensor, weights: Tensor) -> Tensor:
    return (h @ weights).argmax(1)
