"""Pseudo-features: samples of class Gaussians, on which a classifier trains in place of the features of old samples.

Zhu et al., "Prototype Augmentation and Self-Supervision for Incremental Learning", CVPR 2021, drew them around the
means of old classes; Zhang et al., SLCA, ICCV 2023, arXiv 2303.05118, from a whole covariance for each class.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["pseudo_features", "roots_of"]


def roots_of(scatters: Tensor, counts: Tensor, added: float) -> Iterator[Tensor]:
    """Yield the Cholesky factor (d, d), float64, of the covariance of each class, S_c / (n_c - 1) + added I.

    One after the other, because those of all classes at once may fill the memory.

    Args:
        scatters: (c, d, d), the sum over each class's samples of (f - mu)(f - mu)^T, of any rank.
        counts: (c,), the number of samples of each class; at least 1. The covariance of a single one is added I.
        added: a multiple of the identity that makes each covariance invertible; above 0.
    """
    identity = torch.eye(scatters.shape[-1], dtype=torch.float64, device=scatters.device)
    for scatter, count in zip(scatters, counts.tolist(), strict=True):
        yield torch.linalg.cholesky(scatter.double() / max(count - 1, 1) + added * identity)


def pseudo_features(means: Tensor, roots: Iterable[Tensor], samples: int, generator: torch.Generator) -> Tensor:
    """Draw mu_c + L_c z, with z from the standard normal distribution, as many of each class.

    Args:
        means: (c, d), mu_c.
        roots: for each class L_c, (d, d), with L_c L_c^T the covariance of the class.
        samples: how many of each class; at least 1.
        generator: draws z, on the CPU.

    Returns:
        (c * samples, d) float32, the classes one after the other.
    """
    drawn: list[Tensor] = []
    for mean, root in zip(means, roots, strict=True):
        z = torch.randn(samples, len(mean), generator=generator, dtype=torch.float64).to(root)
        drawn.append((mean + z @ root.T).float())
    return torch.cat(drawn)
