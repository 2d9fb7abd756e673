"""Synthetic tasks and quickly trained learners for benchmarks."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lamella.common.options import options_of
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.data.samples import Transform
from lamella.data.scenario import Task
from lamella.data.transform import of_images
from lamella.learner.config.method_names import with_parts
from lamella.learner.config.own_methods import name_in_full
from lamella.learner.config.precision import SlowPrecision
from lamella.learner.config.registry import find
from lamella.learner.learner import Learner

__all__ = ["quick_learner", "short_method", "synthetic_task"]


def short_method(name: str, *, batch: int, epochs: int = 1) -> dict[str, Any]:
    """Return the [method] table of a method with few epochs.

    Args:
        name: the name of the method, which may have parts and a base.
        batch: the batch size.
        epochs: the number of epochs, if the method trains.

    Raises:
        ValueError: the name has the wrong form or an unknown part.
    """
    table = with_parts({"name": name_in_full(name, Path.cwd())})
    if "base" in table:
        table["base"] |= _short(table["base"]["name"], batch, epochs)
    return table | _short(table["name"], batch, epochs)


def _short(name: str, batch: int, epochs: int) -> dict[str, Any]:
    known = options_of(find(name))
    return {key: value for key, value in (("epochs", epochs), ("batch_size", batch)) if key in known}


def quick_learner(backbone: Mapping[str, Any], method: str, batch: int, fit: Mapping[str, Any]) -> Learner:
    """Create a learner that trains for one epoch.

    Args:
        backbone: a table of the arguments of `load_backbone`.
        method: the name of the method with its parts.
        batch: the batch size.
        fit: the options of the training loop.

    Raises:
        ValueError: the backbone or the method is unknown, or the method cannot learn on this backbone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowPrecision)  # how slow it is, is what is measured
        return Learner.create(backbone=backbone, method=short_method(method, batch=batch), fit=fit)


def synthetic_task(number: int, images: int, transform: Transform) -> Task:
    """Task `number` with classes 2 number and 2 number + 1: noise around a colour of the class's own.

    Args:
        number: of the task.
        images: of the task, at least one of each class.
        transform: of the backbone, in whose size the images are.

    Raises:
        ValueError: fewer than two images, or a backbone that takes other samples.
    """
    pixels = of_images(transform, "a benchmark").size
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
