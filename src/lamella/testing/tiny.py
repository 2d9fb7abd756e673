"""Small backbones and tasks on which a method learns in a second; nothing is downloaded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.backbones import Backbone, load_backbone
from lamella.backbones.resnets import ResNet
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.data.loading import Examples
from lamella.data.samples import Samples, View
from lamella.data.scenario import Task
from lamella.data.texts import TextSet
from lamella.data.transform import InputTransform
from lamella.testing.texts import pattern_texts

__all__ = ["MethodCheckError", "pattern_images", "patterns", "tiny_resnet", "tiny_tasks", "tiny_vit"]

ORDER = (4, 1, 0, 5, 3, 2, 7, 6)
"""Global ids of classes in the order in which they come: none is at the place of its own number."""
CLASSES = 8


class MethodCheckError(AssertionError):
    """A method does not keep the contract; the message says what to change."""


def tiny_vit(seed: int = 0) -> Backbone:
    """timm's smallest vision transformer with random weights, on 32-pixel images."""
    return load_backbone("test_vit", weights="random", size=32, crop=1.0, seed=seed)


def tiny_resnet(seed: int = 0) -> Backbone:
    """A residual network of three blocks with random weights, on 16-pixel images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet(blocks=1, widths=(8, 12, 16))
    return Backbone(model, name="tiny", width=16, transform=InputTransform(16, (0.5,) * 3, (0.25,) * 3, "bicubic", 1.0))


def pattern_images(classes: int, per_class: int, part: str, size: int = 16) -> ImageSet:
    """Noisy copies of one random pattern a class.

    Args:
        classes: how many; labels are 0 to classes - 1, in their order.
        per_class: images of each.
        part: such as "train"; another part has other noise.
        size: side of an image, in pixels.
    """
    patterns = torch.rand(classes, 3, size, size, generator=generator(7, "patterns"))
    noise = torch.rand(classes, per_class, 3, size, size, generator=generator(7, part))
    x = (255 * (0.7 * patterns[:, None] + 0.3 * noise)).to(torch.uint8).flatten(0, 1)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return ImageSet(PixelArray(x), labels, [f"{part}/{i}" for i in range(len(x))])


def patterns(noun: str, per_class: int, part: str) -> Examples:
    """Samples of eight classes, `pattern_images` or `pattern_texts`.

    Args:
        noun: "image" or "text".
        per_class: samples of each class.
        part: such as "train"; another part has other samples.
    """
    return pattern_texts(CLASSES, per_class, part) if noun == "text" else pattern_images(CLASSES, per_class, part)


def tiny_tasks(sizes: Sequence[int], per_class: int = 8, noun: str = "image") -> list[Task]:
    """Tasks of so many classes each, at most eight in all; their validation part may not be read.

    Args:
        sizes: classes of each task.
        per_class: training samples of each class.
        noun: what samples are, "image" or "text".
    """
    samples = patterns(noun, per_class, "train")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_task(i, ORDER[start : start + n], samples) for i, (start, n) in enumerate(zip(starts, sizes, strict=True))]


def _task(number: int, classes: tuple[int, ...], samples: Examples) -> Task:
    own = torch.isin(samples.labels, torch.tensor(classes)).nonzero().flatten()
    labels, keys = torch.tensor(classes), [f"validation/{c}" for c in classes]
    locked = (
        ImageSet(_Locked(len(classes)), labels, keys)
        if isinstance(samples, ImageSet)
        else _LockedTexts(keys, labels, keys)
    )
    names = tuple(f"class {c}" for c in classes)
    return Task(number, f"task {number}", classes, names, samples.subset(own), locked)


READ = (
    "learn read task.validation, on which settings are chosen, so that a choice would be made on samples that were "
    "learned from; read task.train only"
)


class _LockedTexts(TextSet):
    """Texts that no method may look at."""

    def batch(self, index: Tensor | Sequence[int], view: View) -> Samples:
        raise MethodCheckError(READ)


class _Locked:
    """Images that no method may look at."""

    encoded = False

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, i: int) -> Tensor:
        raise MethodCheckError(READ)

    def identity(self, i: int) -> bytes:
        return f"locked {i}".encode()

    def content(self, i: int) -> bytes:
        return self.identity(i)
