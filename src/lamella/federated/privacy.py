"""Privacy of a whole client: updates are clipped, noise is added to their mean, and epsilon is computed.

McMahan et al., "Learning Differentially Private Recurrent Language Models" (DP-FedAvg), ICLR 2018, arXiv 1710.06963.
The mean is over a fixed number of clients, each with the same weight, so one of them changes it by at most clip / K.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["clipped", "epsilon_of", "noise_like"]


def clipped(update: Mapping[str, Tensor], most: float) -> dict[str, Tensor]:
    """Return an update, scaled down so that all its tensors together have at most this norm.

    Args:
        update: the change of each trained tensor.
        most: the largest norm; above 0.
    """
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in update.values()))
    return {name: t * min(1.0, most / max(norm, 1e-300)) for name, t in update.items()}


def noise_like(tensor: Tensor, deviation: float, draws: torch.Generator) -> Tensor:
    """Return Gaussian noise of this standard deviation, float64, of the shape and on the device of a tensor."""
    drawn = torch.randn(tensor.shape, generator=draws, dtype=torch.float64)
    return (deviation * drawn).to(tensor.device)


def epsilon_of(noise: float, releases: int, delta: float) -> float:
    """Return epsilon of a number of releases of the Gaussian mechanism in which every client takes part.

    Releases with noise z times the sensitivity compose to a single one with z / sqrt(releases) (Dong, Roth & Su,
    "Gaussian Differential Privacy", JRSS B 2022, arXiv 1905.02383). Of one, delta is known exactly as a function of
    epsilon (Balle & Wang, ICML 2018, arXiv 1805.06530, Theorem 8):

        delta = Phi(m / 2 - epsilon / m) - exp(epsilon) Phi(-m / 2 - epsilon / m)    with m = sqrt(releases) / z

    >>> round(epsilon_of(1.0, 1, 1e-5), 2)
    4.38

    Args:
        noise: z; 0 gives no privacy.
        releases: how often a noisy mean was published.
        delta: within (0, 1).

    Returns:
        Epsilon; infinity without noise, 0 without a release.
    """
    if not releases:
        return 0.0
    if not noise:
        return math.inf
    m = math.sqrt(releases) / noise

    def failing(epsilon: float) -> float:
        return _phi(m / 2 - epsilon / m) - math.exp(epsilon + _log_phi(-m / 2 - epsilon / m))

    low, high = 0.0, 1.0
    while failing(high) > delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if failing(middle) > delta else (low, middle)
    return high


def _phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _log_phi(x: float) -> float:
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))
