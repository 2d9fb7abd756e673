"""Coefficients over adapters of past tasks, found with few labelled samples and no gradients.

LoraHub (Huang et al., COLM 2024, arXiv 2307.13269) searches, for few samples of a new task, the coefficients w of past
adapters that minimise loss(w) + penalty * mean |w|, from w = 0 and within bounds. Departures: the search is CMA-ES of
the package `cmaes` instead of Nevergrad's choice; and coefficients multiply updates, not A and B apart, so that no
products of one adapter's A with another one's B arise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.adapters.adapter import using
from lamella.adapters.sites import Site
from lamella.common.randomness import named_seed

__all__ = ["Mix", "Mixing", "mix"]


@dataclass(frozen=True)
class Mixing:
    """How coefficients are searched.

    Attributes:
        evaluations: how often the loss is computed at most, at least 1. More adapters need more.
        bound: coefficients lie from -bound to bound, above 0.
        penalty: the weight of the mean size of a coefficient beside the loss, at least 0. It keeps adapters out that do
            not help.

    Raises:
        ValueError: a number is out of its range.
    """

    evaluations: int = 200
    bound: float = 1.5
    penalty: float = 0.05

    def __post_init__(self) -> None:
        if type(self.evaluations) is not int or self.evaluations < 1:
            raise ValueError(f"evaluations {self.evaluations!r} must be a whole number of at least 1, such as 200")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound {self.bound} must be a finite number above 0, such as 1.5")
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"penalty {self.penalty} must be a finite number of at least 0, such as 0.05")


class Mix(NamedTuple):
    """What a search found.

    Attributes:
        coefficients: by adapter its coefficient, as `using` and `grow_sum` take them.
        loss: the loss with them, without the penalty.
        bare: the loss without any adapter.
        evaluations: how often the loss was computed.
    """

    coefficients: dict[str, float]
    loss: float
    bare: float
    evaluations: int


@torch.no_grad()
def mix(
    sites: Sequence[Site],
    names: Sequence[str],
    loss: Callable[[], Tensor | float],
    mixing: Mixing = Mixing(),
    *,
    seed: int = 0,
) -> Mix:
    """Search coefficients of adapters for few labelled samples.

    The loss with the penalty is never above that without any adapter, which is the first that is computed.

    Args:
        sites: the sites of the adapters.
        names: the adapters; at least one.
        loss: computes the loss of the samples by a pass through the network. While it is called, the adapters act with
            the coefficients that are tried. A loss that is not finite counts as the worst.
        mixing: the budget, the bounds and the penalty.
        seed: the seed of the search.

    Raises:
        ValueError: there is no adapter of a name, a name is given twice, the loss without adapters is not finite, or
            the evaluations are too few for a first round of the search, which grows with the number of adapters.
        RuntimeError: the package cmaes is not installed.
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"names is {names!r}; it must be a list of at least one adapter, each named once")
    tried: list[tuple[float, float, list[float]]] = []

    def objective(w: Sequence[float]) -> float:
        with using(sites, dict(zip(names, w, strict=True))):
            own = float(loss())
        size = mixing.penalty * sum(abs(c) for c in w) / len(w)
        tried.append((own + size if math.isfinite(own) else math.inf, own, list(w)))
        return tried[-1][0]

    if not math.isfinite(objective([0.0] * len(names))):
        raise ValueError("the loss without adapters is not finite; check the samples and their labels")
    bare = tried[0][1]
    _search(objective, len(names), mixing, named_seed(seed, "mix", *names))
    _, found, w = min(tried, key=lambda one: one[0])
    return Mix(dict(zip(names, w, strict=True)), found, bare, len(tried))


def _search(objective: Callable[[Sequence[float]], float], count: int, mixing: Mixing, seed: int) -> None:
    """Minimise by CMA-ES from zeros, until the budget is used or the search has come to rest."""
    import numpy as np

    wide = max(2, count)  # older versions of cmaes refuse one dimension; a second one changes nothing
    bounds = np.tile([-mixing.bound, mixing.bound], (wide, 1))
    optimizer = _cmaes().CMA(np.zeros(wide), mixing.bound / 3, bounds=bounds, seed=seed % 2**32)
    left = mixing.evaluations - 1
    if left < optimizer.population_size:
        raise ValueError(
            f"evaluations {mixing.evaluations} are too few to search the coefficients of {count} adapters; give at "
            f"least {1 + optimizer.population_size}, and some hundreds are usual"
        )
    while left >= optimizer.population_size and not optimizer.should_stop():
        asked = [optimizer.ask() for _ in range(optimizer.population_size)]
        optimizer.tell([(w, min(objective(w[:count].tolist()), 1e300)) for w in asked])
        left -= len(asked)


def _cmaes() -> Any:
    try:
        import cmaes
    except ImportError:
        raise RuntimeError("mixing needs the package cmaes: pip install 'lamella[mixing]'") from None
    return cmaes
