"""What benchmarks learn: tasks that need no data, and learners that are quick to train."""

from collections.abc import Mapping
from typing import Any

import torch

from lamella.common.options import options_of
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.data.scenario import Task
from lamella.learner.learner import Learner
from lamella.methods import METHODS

__all__ = ["quick_learner", "short_method", "synthetic_task"]


def short_method(name: str, *, batch: int, epochs: int = 1) -> dict[str, Any]:
    """The [method] table of a name with parts, as in "inflora+align"; what trains nothing has no epochs to set."""
    plain, *parts = name.split("+")
    known = options_of(METHODS[plain]) if plain in METHODS else {}
    short = {key: value for key, value in (("epochs", epochs), ("batch_size", batch)) if key in known}
    return {"name": plain, **short, **dict.fromkeys(parts, True)}


def quick_learner(backbone: Mapping[str, Any], method: str, batch: int, fit: Mapping[str, Any]) -> Learner:
    """A learner of one epoch, in batches of this size.

    Raises:
        ValueError: an unknown backbone or method, or one that cannot learn on this backbone.
    """
    table = short_method(method, batch=batch)
    return Learner.create(backbone=backbone, method=table, align="align" in table, fit=fit)


def synthetic_task(number: int, images: int, pixels: int) -> Task:
    """Task `number` with classes 2 number and 2 number + 1: noise around a colour of the class's own.

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
