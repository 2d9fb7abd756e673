"""Clusters of features, by k-means."""

import torch
from torch import Tensor

__all__ = ["cluster_centres"]


def cluster_centres(points: Tensor, count: int, seed: int) -> Tensor:
    """Cluster points by k-means.

    Args:
        points: (n, d).
        count: how many centres are wanted; at least 1.
        seed: the seed of the start.

    Returns:
        (k, d) centres; k is `count`, or less if there are fewer distinct points.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    x = points.double().cpu()
    count = min(count, len(torch.unique(x, dim=0)))
    # One thread: several add up their parts in the order in which they finish, which is another one each time.
    with threadpool_limits(1, user_api="openmp"):
        found = KMeans(count, n_init="auto", random_state=seed % 2**32).fit(x.numpy())
    return torch.from_numpy(found.cluster_centers_).to(points)
