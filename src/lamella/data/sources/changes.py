"""Domains that are made of one data set by changing its pictures: light, sharpness, or a drawing's edges.

They are synthetic: no camera and no person made them. They are for trying out how a method keeps the same classes apart
in pictures that look otherwise, where no data with real domains are at hand.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.common.checks import did_you_mean
from lamella.data.images import ImageSet, Pixels
from lamella.data.scenario import Source
from lamella.data.splits import in_drawn_order

__all__ = ["CHANGES", "change_domains"]


def _dark(image: Tensor) -> Tensor:
    """In little light: at most 30 % of the brightness, and middle tones darker still."""
    return 0.3 * image**1.5


def _blurred(image: Tensor) -> Tensor:
    """Out of focus: the mean over squares of a twentieth of the shorter side, taken twice."""
    side = max(3, min(image.shape[1:]) // 20 | 1)
    soft = image[None]
    for _ in range(2):
        soft = F.avg_pool2d(F.pad(soft, [side // 2] * 4, mode="replicate"), side, stride=1)
    return soft[0]


def _drawn(image: Tensor) -> Tensor:
    """Dark edges on white paper: the magnitude of the gradient of the brightness."""
    grey = F.pad(image.mean(0)[None, None], [1, 1, 1, 1], mode="replicate")[0, 0]
    across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    return (1 - 3 * (across.square() + down.square()).sqrt()).clamp_min(0).expand(3, -1, -1)


AS_IT_IS = "as-is"
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    AS_IT_IS: lambda image: image,
    "dark": _dark,
    "blurred": _blurred,
    "drawn": _drawn,
    "negative": lambda image: 1 - image,
}
"""Changes of a picture (3, h, w), 0..1, by name."""


class _Changed:
    """The pictures of a storage, each with the change of its domain.

    Args:
        storage: the storage.
        names: the name of the change of each picture.
    """

    encoded = True  # a change takes long enough to be worth threads

    def __init__(self, storage: Pixels, names: Sequence[str]) -> None:
        self.storage, self.names = storage, tuple(names)

    def __len__(self) -> int:
        return len(self.storage)

    def read(self, i: int) -> Tensor:
        image = self.storage.read(i)
        if self.names[i] == AS_IT_IS:
            return image
        return (CHANGES[self.names[i]](image.float() / 255) * 255).round().clamp(0, 255).byte()

    def identity(self, i: int) -> bytes:
        return self.storage.identity(i) + self.names[i].encode()

    def content(self, i: int) -> bytes:
        own = self.storage.content(i)
        return own if self.names[i] == AS_IT_IS else own + self.names[i].encode()


def change_domains(source: Source, names: Sequence[str]) -> Source:
    """Return the source with a domain for each of these changes, among which its pictures are dealt out.

    Each picture is in one domain only. The pictures of a class are dealt out evenly, by their keys.

    Args:
        source: a data set of pictures without domains.
        names: of CHANGES, each once; at least two.

    Raises:
        ValueError: a name is unknown or there twice, there is only one, or the data set has domains already.
    """
    for name in names:
        if name not in CHANGES:
            raise ValueError(
                f"no change is called {name!r}{did_you_mean(name, CHANGES)}; there are {', '.join(CHANGES)}"
            )
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(
            f"changes = {list(names)} makes no domains; name two or more of {', '.join(CHANGES)}, each once"
        )
    if source.train_domains is not None:
        raise ValueError(f"{source.name} has domains of its own ({', '.join(source.domain_names)}); leave changes out")
    if not isinstance(source.train, ImageSet) or not isinstance(source.test, ImageSet):
        raise ValueError(f"changes are for images, and {source.name} has {source.train.noun}s")
    train, test = (_dealt(part, len(names)) for part in (source.train, source.test))
    return replace(
        source,
        train=_changed(source.train, train, names),
        test=_changed(source.test, test, names),
        domain_names=tuple(names),
        train_domains=train,
        test_domains=test,
    )


def _dealt(data: ImageSet, domains: int) -> Tensor:
    """Return the domain of each picture, (n,) int64."""
    dealt = torch.zeros(len(data), dtype=torch.int64)
    for label in data.labels.unique().tolist():
        members = (data.labels == label).nonzero()[:, 0].tolist()
        order = in_drawn_order(members, data.keys, seed=0, name="changes")
        dealt[order] = torch.arange(len(order)) % domains
    return dealt


def _changed(data: ImageSet, domains: Tensor, names: Sequence[str]) -> ImageSet:
    of_picture = [AS_IT_IS] * len(data.storage)
    for position, domain in zip(data.positions.tolist(), domains.tolist(), strict=True):
        of_picture[position] = names[domain]
    return ImageSet(_Changed(data.storage, of_picture), data.labels, data.keys, data.positions)
