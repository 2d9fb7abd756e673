"""Samples as a backbone takes them, one tensor or several named ones with a row for each sample; and how they are made.

Everything above the data and below a backbone passes such a batch on without looking into it: it asks for its length,
takes some of its rows, sends it to a device. So methods learn from images, texts or anything else alike.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, overload

import torch
from torch import Tensor

__all__ = ["CPU", "Batch", "Samples", "Transform", "View", "concatenate_samples", "refuse_augmentation", "tensors_of"]

CPU = torch.device("cpu")


class Batch:
    """Named tensors with a row for each sample, such as token ids and the mask that tells them from padding.

    Where samples are meant it behaves as one tensor does: its length is the number of samples, a slice or an index
    takes some of them, `to` sends them. Only a backbone asks for a tensor by its name.

    Args:
        tensors: by name, each (n, ...).

    Raises:
        ValueError: there is no tensor, or they are of different lengths.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        lengths = {name: len(tensor) for name, tensor in self.tensors.items()}
        if len(set(lengths.values())) != 1:
            told = ", ".join(f"{name} {n}" for name, n in lengths.items()) or "there are no tensors"
            raise ValueError(f"a batch needs tensors with a row for each sample, all of one length: {told}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __repr__(self) -> str:
        return f"Batch({', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in self.tensors.items())})"

    @overload
    def __getitem__(self, which: str) -> Tensor: ...

    @overload
    def __getitem__(self, which: slice | Tensor) -> "Batch": ...

    def __getitem__(self, which: str | slice | Tensor) -> "Tensor | Batch":
        """The tensor of a name, or the samples of a slice or of an index tensor."""
        if isinstance(which, str):
            return self.tensors[which]
        if isinstance(which, slice) or (isinstance(which, Tensor) and which.ndim == 1):
            return self.map(lambda tensor: tensor[which])
        raise TypeError(f"samples of a batch are taken by a slice or an index tensor (k,), not by {which!r}")

    __iter__ = None  # else Python would try the numbers 0, 1, ... one after the other

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same samples on a device; numbers keep their types."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """A batch of what `change` makes of each tensor."""
        return Batch({name: change(tensor) for name, tensor in self.tensors.items()})


Samples: TypeAlias = Tensor | Batch
"""The inputs of n samples, as a backbone takes them."""

View = Callable[[Any, Tensor], Samples]
"""(raw samples, as their set has them; index (n,) of each in its set) -> the inputs of these n samples, on its device.

Raw images are uint8 (3, h, w) each, and become float32 (n, 3, size, size)."""


class Transform(Protocol):
    """How the raw samples of one kind become what a backbone takes.

    Attributes:
        noun: what one sample is called in messages, such as "image"; several are called by it with an "s".
    """

    @property
    def noun(self) -> str: ...

    def view(
        self,
        device: torch.device = CPU,
        augmentation: Any = None,
        n: int = 0,
        generator: torch.Generator | None = None,
    ) -> View:
        """What turns raw samples into inputs. Padding to one length happens there, batch by batch.

        Args:
            device: where the inputs will be.
            augmentation: how training samples are altered; they stay as they are where it is left out.
            n: the length of the set; an augmentation draws for each of its samples.
            generator: what an augmentation draws from, on the CPU.

        Raises:
            ValueError: an augmentation that is for samples of another kind.
        """
        ...

    def example(self, n: int, generator: torch.Generator | None = None) -> Samples:
        """Inputs of n samples that show nothing: blank ones, or drawn from the generator where there is one.

        They have the shapes and the types of real inputs, on the CPU. Where samples have lengths of their own, drawn
        ones have several, so that some are padded.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """The settings by name, for files that leave the library."""
        ...


def refuse_augmentation(augmentation: Any, noun: str) -> None:
    """Refuse an augmentation of samples that are no images, for which there is none.

    Args:
        augmentation: what a transform was given; None for nothing.
        noun: what one sample of the transform is called.

    Raises:
        ValueError: an augmentation was given.
    """
    if augmentation is not None:
        raise ValueError(f"[augment] is for images, and this backbone takes {noun}s; leave it out")


def tensors_of(samples: Samples) -> tuple[Tensor, ...]:
    """All tensors of a batch."""
    return tuple(samples.tensors.values()) if isinstance(samples, Batch) else (samples,)


def concatenate_samples(parts: Sequence[Samples]) -> Samples:
    """The samples of all parts, in order.

    Raises:
        ValueError: there are no parts; they are of different kinds, or padded to different lengths.
    """
    shapes = {tuple((name, *t.shape[1:]) for name, t in _named(part).items()) for part in parts}
    if len(shapes) != 1:
        told = " and ".join(map(str, sorted(shapes))) or "there are none"
        raise ValueError(f"samples of different shapes cannot be put into one batch; pad them to one length: {told}")
    joined = {name: torch.cat([_named(part)[name] for part in parts]) for name in _named(parts[0])}
    return Batch(joined) if isinstance(parts[0], Batch) else joined[""]


def _named(samples: Samples) -> dict[str, Tensor]:
    return samples.tensors if isinstance(samples, Batch) else {"": samples}
