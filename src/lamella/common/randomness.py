"""Random draws by name: every draw depends on a seed and on names only, never on the state of a shared generator.

Therefore a resumed run, a loader with threads, and a method inside another one draw the same numbers as an
uninterrupted run of the method alone. No other draw can change them.
"""

from hashlib import blake2b

import torch

__all__ = ["generator", "named_seed", "seed_torch"]


def named_seed(seed: int, *names: str | int) -> int:
    """Compute a 63-bit integer that depends on `seed` and on every name, in order."""
    text = "\x1f".join(str(name) for name in (int(seed), *names))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Create a CPU generator for the draw called `names` under `seed`.

    >>> a = torch.rand(2, generator=generator(0, "task", 3, "shuffle"))
    >>> b = torch.rand(2, generator=generator(0, "task", 3, "shuffle"))
    >>> bool((a == b).all())
    True
    """
    return torch.Generator().manual_seed(named_seed(seed, *names))


def seed_torch(seed: int, device: torch.device) -> None:
    """Set the seed of torch's own generator for what is drawn on one device.

    On a CPU this does what `torch.manual_seed` does for it, and leaves out the accelerators, for which that keeps a
    record of the whole call stack: a millisecond and more a call, where none is in use.

    Args:
        seed: the seed.
        device: where the numbers are drawn.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
