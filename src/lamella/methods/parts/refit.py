"""A head over all classes that is trained on samples of their Gaussians, in place of heads that never met."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.methods.shared.heads import Heads
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["refitted_head"]


def refitted_head(
    statistics: ClassGaussians, shrinkage: float, samples: int, training: Training, fit: Fit, seed: int
) -> Heads:
    """Train one head over all classes on samples of N(mu_c, S), with S the shrunk shared covariance.

    Zhang et al., SLCA, ICCV 2023, arXiv 2303.05118; align.py lists what differs.

    Args:
        statistics: the Gaussians of the classes, of features (d,).
        shrinkage: of the shared covariance; see `shrunk`.
        samples: how many samples of each class; at least 1.
        training: how the head is trained.
        fit: the training loop.
        seed: of the samples and of the start of the head.
    """
    classes = statistics.classes
    draws = generator(seed, "align", "samples", len(classes))
    root = torch.linalg.cholesky(shrunk(statistics.covariance, shrinkage))
    noise = torch.randn(len(classes), samples, len(root), generator=draws).to(root)
    x = (statistics.means[:, None] + noise @ root.T).flatten(0, 1).float()
    heads = Heads(len(root)).to(x.device)
    head = heads.grow(classes, generator(seed, "align", "head", len(classes))).to(x.device)

    def loss(f: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(f), head.columns(labels))

    fit(TensorSet(x, statistics.ids.repeat_interleave(samples)), loss, head.parameters(), training, name="align-refit")
    return heads
