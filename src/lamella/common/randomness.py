"""Randomness by name: every draw is a function of named things, never of a running generator.

A resumed run, a loader with threads and a method inside another one then see the same numbers as an
undisturbed run alone, because nobody else's draws can move theirs.
"""

from hashlib import blake2b

import torch

__all__ = ["generator", "named_seed"]


def named_seed(seed: int, *names: str | int) -> int:
    """A 63-bit integer that depends on `seed` and on every name, in order."""
    text = "\x1f".join(str(name) for name in (int(seed), *names))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A fresh CPU generator for the draw called `names` under `seed`.

    >>> a = torch.rand(2, generator=generator(0, "task", 3, "shuffle"))
    >>> b = torch.rand(2, generator=generator(0, "task", 3, "shuffle"))
    >>> bool((a == b).all())
    True
    """
    return torch.Generator().manual_seed(named_seed(seed, *names))
