"""Small streams and learners for tests: images whose class can be learned in seconds."""

from typing import Any

import torch

from lamella.backbones import Backbone, load_backbone
from lamella.data.images import ImageSet, PixelArray
from lamella.data.scenario import Scenario, Source, class_incremental
from lamella.data.transform import Augmentation
from lamella.fit import Fit
from lamella.methods import METHODS
from lamella.randomness import generator

QUICK: dict[str, dict[str, Any]] = {
    "nearest-mean": {},
    "streaming-lda": {},
    "linear-probe": {"epochs": 5},
}


def images(classes: int, per_class: int, part: str, size: int = 16) -> ImageSet:
    """Noisy copies of one random pattern a class."""
    patterns = torch.rand(classes, 3, size, size, generator=generator(7, "patterns"))
    noise = torch.rand(classes, per_class, 3, size, size, generator=generator(7, part))
    x = (255 * (0.7 * patterns[:, None] + 0.3 * noise)).to(torch.uint8).flatten(0, 1)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return ImageSet(PixelArray(x), labels, [f"{part}/{i}" for i in range(len(x))])


def source(classes: int = 6, per_class: int = 8) -> Source:
    names = tuple(f"class {i}" for i in range(classes))
    return Source("patterns", images(classes, per_class, "train"), images(classes, 4, "test"), names)


def stream(classes: int = 6, tasks: int = 3, per_class: int = 8, **options: Any) -> Scenario:
    return class_incremental(source(classes, per_class), tasks=tasks, seed=0, **options)


def tiny_backbone(seed: int = 0) -> Backbone:
    """timm's smallest ViT with random weights, on 32-pixel images."""
    return load_backbone("test_vit", weights="random", size=32, crop=1.0, seed=seed)


def build(name: str, seed: int = 0, backbone: Backbone | None = None, **options: Any) -> Any:
    """Method `name` with short training on the tiny backbone."""
    quick = QUICK.get(name, {"epochs": 2, "batch_size": 8})
    return METHODS[name](backbone or tiny_backbone(), seed=seed, **(quick | options))


def fit_for(method: Any, **options: Any) -> Fit:
    return Fit(method, method.backbone.transform, augmentation=Augmentation((0.8, 1.0)), device="cpu", **options)


def learn_all(method: Any, scenario: Scenario, fit: Fit | None = None) -> Any:
    fit = fit or fit_for(method)
    for task in (scenario[i] for i in range(len(scenario))):
        fit.begin(str(task.id))
        method.learn(task, fit)
    return method
