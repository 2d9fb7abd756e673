"""The triplet loss with means of old classes as further negatives.

Of each sample's pairs only the hardest count: Hermans, Beyer & Leibe, 2017, arXiv 1703.07737.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["augmented_triplet"]


def augmented_triplet(features: Tensor, labels: Tensor, means: Tensor, ids: Tensor, margin: float) -> Tensor:
    """Return the mean over a batch of max(0, d_far - d_near + margin), for features brought to length 1.

    d_far is the distance of a sample to the farthest one of its own class in the batch, itself included; d_near that to
    the nearest sample or class mean of another class. A sample without any of these counts as 0.

    Args:
        features: (n, d).
        labels: (n,) global class ids.
        means: (c, d) class means of old tasks; they are brought to length 1 as well.
        ids: (c,) the global ids of their classes.
        margin: by how much d_near should be larger than d_far.
    """
    # In float64, since the distance of samples that are alike is the root of a difference of numbers near 2; autocast
    # leaves float64 alone.
    unit = normalize(features.double(), dim=1)
    others = torch.cat([unit, normalize(means.to(unit), dim=1)])
    distances = (2 - 2 * unit @ others.T).clamp_min(1e-12).sqrt()
    same = labels[:, None] == torch.cat([labels, ids.to(labels)])
    far = distances[:, : len(unit)].masked_fill(~same[:, : len(unit)], 0).amax(1)
    near = distances.masked_fill(same, float("inf")).amin(1)
    return (far - near + margin).clamp_min(0).mean().float()
