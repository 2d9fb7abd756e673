"""Small backbones and tasks on which a method learns in a second; nothing is downloaded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.backbones import Backbone, load_backbone
from lamella.backbones.resnets import ResNet
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.data.scenario import Task
from lamella.data.transform import InputTransform

__all__ = ["MethodCheckError", "pattern_images", "tiny_resnet", "tiny_tasks", "tiny_vit"]

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


def tiny_tasks(sizes: Sequence[int], per_class: int = 8) -> list[Task]:
    """Tasks of so many classes each, at most eight in all; their validation part may not be read.

    Args:
        sizes: classes of each task.
        per_class: training images of each class.
    """
    images = pattern_images(CLASSES, per_class, "train")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_task(i, ORDER[start : start + n], images) for i, (start, n) in enumerate(zip(starts, sizes, strict=True))]


def _task(number: int, classes: tuple[int, ...], images: ImageSet) -> Task:
    own = torch.isin(images.labels, torch.tensor(classes)).nonzero().flatten()
    locked = ImageSet(_Locked(len(classes)), torch.tensor(classes), [f"validation/{c}" for c in classes])
    names = tuple(f"class {c}" for c in classes)
    return Task(number, f"task {number}", classes, names, images.subset(own), locked)


class _Locked:
    """Images that no method may look at."""

    encoded = False

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, i: int) -> Tensor:
        raise MethodCheckError(
            "learn read task.validation, on which settings are chosen, so that a choice would be made on images that "
            "were learned from; read task.train only"
        )

    def identity(self, i: int) -> bytes:
        return f"locked {i}".encode()

    def content(self, i: int) -> bytes:
        return self.identity(i)
