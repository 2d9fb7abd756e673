"""First weights of networks, which are drawn from torch's one generator."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from lamella.common.randomness import named_seed, seed_torch

__all__ = ["drawn_by"]

_DRAWING = Lock()  # a server loads in several threads


@contextmanager
def drawn_by(seed: int, *names: str) -> Iterator[None]:
    """Let torch draw by a seed and names while this runs, in one thread at a time, and go on as before afterwards."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        seed_torch(named_seed(seed, *names), torch.device("cpu"))
        yield
