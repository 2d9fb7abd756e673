"""Small things to compare on: draws, a network, tasks; and how far two tensors are apart."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lamella.backbones import Backbone, load_backbone
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.data.transform import of_images, plain_view
from lamella.training.fit import Fit

__all__ = [
    "Bar",
    "draw",
    "gradient",
    "inputs",
    "largest",
    "learned",
    "relative",
    "tiny",
    "tiny_tasks",
    "with_attention",
]

SIZE = 32
PER_CLASS = 6


def draw(*shape: int, name: str) -> Tensor:
    """Return normal draws (float32) that follow from the name and the shape alone."""
    return torch.randn(shape, generator=generator(0, "against", name, *shape))


def largest(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two tensors of one shape; infinity where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.detach().double() - theirs.detach().double()).abs().max())


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return `largest` as a share of the largest number of ours."""
    return largest(ours, theirs) / max(float(ours.detach().double().abs().max()), 1e-30)


def gradient(tensor: Tensor) -> Tensor:
    """Return the gradient that has reached a tensor; zeros where none has."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def inputs(task: Task, backbone: Backbone) -> Samples:
    """Return all images of a task as a backbone takes them."""
    return task.train.batch(torch.arange(len(task.train)), plain_view(of_images(backbone.transform, "a comparison")))


def tiny() -> Backbone:
    """Return timm's smallest vision transformer with random weights; nothing is downloaded."""
    return load_backbone("test_vit", weights="random", size=SIZE, crop=1.0)


def tiny_tasks(number: int) -> list[Task]:
    """Return tasks of two classes each, of noisy copies of one random picture a class."""
    pictures = torch.rand(2 * number, 3, SIZE, SIZE, generator=generator(0, "against", "pictures"))
    noise = torch.rand(2 * number, PER_CLASS, 3, SIZE, SIZE, generator=generator(0, "against", "noise"))
    pixels = (255 * (0.7 * pictures[:, None] + 0.3 * noise)).to(torch.uint8).flatten(0, 1)
    labels = torch.arange(2 * number).repeat_interleave(PER_CLASS)
    every = ImageSet(PixelArray(pixels), labels, [str(i) for i in range(len(labels))])
    classes = [(2 * i, 2 * i + 1) for i in range(number)]
    parts = [every.subset(torch.isin(labels, torch.tensor(own)).nonzero()[:, 0]) for own in classes]
    return [
        Task(i, f"task {i}", own, tuple(map(str, own)), part)
        for i, (own, part) in enumerate(zip(classes, parts, strict=True))
    ]


def learned(method: Any, tasks: Sequence[Task]) -> Any:
    """Return a method that has learned tasks, without augmentation, on the CPU."""
    fit = Fit(method, method.backbone.transform, device="cpu")
    for task in tasks:
        fit.begin(str(task.id))
        method.learn(task, fit)
    return method.eval()


def with_attention(backbone: Backbone, attention: Any, *args: Any, rank: int, **asked: Any) -> list[Any]:
    """Put an attention of theirs, with the same weights, into each block of a network, and return these.

    Args:
        backbone: timm's vision transformer.
        attention: their class, which takes the width, `num_heads`, `qkv_bias` and `r`.
        args: what its forward pass is given after x.
        rank: of its pairs.
        asked: the named arguments of its forward pass.
    """
    found: list[Any] = []
    blocks: Any = backbone.model.blocks
    for block in blocks:
        theirs = attention(backbone.width, num_heads=block.attn.num_heads, qkv_bias=True, r=rank, n_tasks=1)
        theirs.load_state_dict(block.attn.state_dict(), strict=False)
        block.attn = _Asked(theirs, args, asked)
        found.append(theirs)
    return found


class _Asked(nn.Module):
    """A module that is always called with the same further arguments, whatever those are that it gets."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], asked: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.args, self.asked = module, args, asked

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.module(x, *self.args, **self.asked)


class Bar(list[Any]):
    """What stands in for a bar of progress, and for a schedule of rates."""

    def __init__(self, steps: Any, **_: Any) -> None:
        super().__init__(steps)

    def set_description(self, _: str) -> None:
        """Do nothing."""

    def step(self) -> None:
        """Do nothing."""
