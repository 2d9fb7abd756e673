"""How a memory keeps samples of one kind: all of them in one tensor, which is part of a method's state."""

import json
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lamella.data.images import ImageSet, PixelArray
from lamella.data.loading import Examples
from lamella.data.samples import Transform
from lamella.data.texts import TextSet
from lamella.data.transform import InputTransform, plain_view

__all__ = ["Images", "Store", "Texts", "decoded", "encoded", "store_of"]

CHUNK = 64  # images that are read at once; photos are large before they are resized

AnySet = TypeVar("AnySet")


class Store(Protocol):
    """What a memory does with the tensor of its samples.

    Attributes:
        name: of the tensor in the state of a method.
    """

    name: str

    def empty(self) -> Tensor:
        """The tensor of no samples."""
        ...

    def taken(self, held: Tensor, index: Sequence[int]) -> Tensor:
        """The tensor of the samples at these places of a tensor, in this order."""
        ...

    def added(self, held: Tensor, data: Any, index: Tensor) -> Tensor:
        """The tensor of the samples of a tensor, on its device, and then those at the positions (k,) of a set."""
        ...

    def as_set(self, held: Tensor, labels: Tensor, keys: Sequence[str]) -> Any:
        """The samples of a tensor as a set, on the CPU."""
        ...

    def checked(self, data: Examples) -> Any:
        """The set, if its samples are of this kind.

        Raises:
            ValueError: they are not.
        """
        ...


class Images:
    """Images in the size that a backbone takes, (m, 3, size, size) uint8, not augmented.

    Args:
        size: the side of an image.
    """

    name = "images"

    def __init__(self, size: int) -> None:
        self.size = size

    def empty(self) -> Tensor:
        return torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)

    def taken(self, held: Tensor, index: Sequence[int]) -> Tensor:
        return held[torch.tensor(index, dtype=torch.int64, device=held.device)]

    def added(self, held: Tensor, data: ImageSet, index: Tensor) -> Tensor:
        images = torch.cat([self._compact(data.pixels(part)) for part in index.split(CHUNK)])
        return torch.cat([held, images.to(held.device)])

    def as_set(self, held: Tensor, labels: Tensor, keys: Sequence[str]) -> ImageSet:
        return ImageSet(PixelArray(held.cpu()), labels.cpu(), keys)

    def checked(self, data: Examples) -> ImageSet:
        return _of_kind(data, ImageSet, "images")

    def _compact(self, pixels: list[Tensor]) -> Tensor:
        """Return (n, 3, size, size) uint8 images: the centre, after the shorter side was resized to `size`."""
        if all(image.shape[1:] == (self.size, self.size) for image in pixels):
            return torch.stack([image.cpu() for image in pixels]) if pixels else self.empty()
        view = plain_view(InputTransform(self.size, (0.0,) * 3, (1.0,) * 3))
        return (255 * view(pixels, torch.arange(len(pixels)))).round().to(torch.uint8).cpu()


class Texts:
    """Texts, (bytes,) uint8: all of them as one list of JSON."""

    name = "texts"

    def empty(self) -> Tensor:
        return encoded(())

    def taken(self, held: Tensor, index: Sequence[int]) -> Tensor:
        texts = decoded(held)
        return encoded([texts[i] for i in index]).to(held.device)

    def added(self, held: Tensor, data: TextSet, index: Tensor) -> Tensor:
        return encoded([*decoded(held), *(data.texts[i] for i in index.tolist())]).to(held.device)

    def as_set(self, held: Tensor, labels: Tensor, keys: Sequence[str]) -> TextSet:
        return TextSet(decoded(held), labels.cpu(), keys)

    def checked(self, data: Examples) -> TextSet:
        return _of_kind(data, TextSet, "texts")


def store_of(transform: Transform) -> Store | None:
    """How samples of a backbone's kind are kept; None where nobody has said how."""
    if isinstance(transform, InputTransform):
        return Images(transform.size)
    return Texts() if transform.noun == TextSet.noun else None


def encoded(texts: Sequence[str]) -> Tensor:
    """Strings as the bytes of a list of JSON, (bytes,) uint8."""
    written = json.dumps(list(texts), ensure_ascii=False).encode(errors="surrogatepass")
    return torch.frombuffer(bytearray(written), dtype=torch.uint8).clone()


def decoded(held: Tensor) -> list[str]:
    """The strings of such a tensor."""
    return json.loads(held.cpu().numpy().tobytes())


def _of_kind(data: object, kind: type[AnySet], kept: str) -> AnySet:
    if not isinstance(data, kind):
        noun = getattr(data, "noun", "sample")
        raise ValueError(f"a memory keeps {kept}, and these are {noun}s; set it to 0")
    return data
