"""Tasks of two classes that need no data: noise around a colour of the class's own."""

import torch

from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.data.scenario import Task

__all__ = ["synthetic_task"]


def synthetic_task(number: int, images: int, pixels: int) -> Task:
    """Task `number` with classes 2 number and 2 number + 1.

    Args:
        images: of the task, at least one of each class. pixels: side of its square images.

    Raises:
        ValueError: fewer than two images.
    """
    if images < 2:
        raise ValueError(f"a task of two classes needs at least 2 images, not {images}")
    draws = generator(0, "bench", number)
    colours = torch.randint(32, 224, (2, 3, 1, 1), generator=draws)
    own = torch.arange(images) % 2
    noise = torch.randint(-32, 32, (images, 3, pixels, pixels), generator=draws)
    classes = (2 * number, 2 * number + 1)
    data = ImageSet(
        PixelArray((colours[own] + noise).to(torch.uint8)),
        own + 2 * number,
        tuple(f"{number}/{i}" for i in range(images)),
    )
    return Task(number, f"synthetic {number}", classes, tuple(f"class {c}" for c in classes), data)
