"""How the samples of a task are shared out among clients."""

import numpy as np
import torch
from torch import Tensor

from lamella.common.randomness import generator, named_seed

__all__ = ["partition"]


def partition(labels: Tensor, clients: int, dirichlet: float | None, seed: int, task: str) -> list[Tensor]:
    """Return the positions of each client's samples, in rising order; together they are all positions, each once.

    Without `dirichlet` samples are dealt out at random in equal numbers (IID). With it each class is split by shares
    that are drawn from a symmetric Dirichlet distribution: the smaller the number, the fewer clients have most of a
    class (Hsu, Qi & Brown, arXiv 1909.06335, here by class and not by client, so that every sample has one client).

    Args:
        labels: (n,) global class ids.
        clients: the number of clients; at least 1.
        dirichlet: the concentration; above 0. None deals out evenly.
        seed: the seed of the draws, together with the task.
        task: the name of the task.

    Returns:
        A tensor of positions for each client; it is empty for a client that gets no sample.
    """
    if dirichlet is None:
        order = torch.randperm(len(labels), generator=generator(seed, "clients", task))
        return [order[i::clients].sort().values for i in range(clients)]
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    for label in labels.unique().tolist():
        where = (labels == label).nonzero().flatten()
        where = where[torch.randperm(len(where), generator=generator(seed, "clients", task, label))]
        draws = np.random.default_rng(named_seed(seed, "shares", task, label))
        cuts = (np.cumsum(draws.dirichlet([dirichlet] * clients))[:-1] * len(where)).round().astype(int)
        for part, own in zip(parts, where.tensor_split(torch.from_numpy(cuts)), strict=True):
            part.append(own)
    return [torch.cat(part).sort().values for part in parts]
