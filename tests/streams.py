"""Small streams and learners for tests: images whose class can be learned in seconds."""

import copy
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.common.options import arguments, options_of
from lamella.common.randomness import generator
from lamella.data.images import ImageSet
from lamella.data.scenario import Scenario, Source, Task, class_incremental
from lamella.data.transform import Augmentation, plain_view
from lamella.methods import METHODS
from lamella.testing.tiny import pattern_images as images
from lamella.testing.tiny import tiny_resnet as tiny_residual_backbone
from lamella.testing.tiny import tiny_vit as tiny_backbone
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = [
    "OFTEN",
    "QUICK",
    "RESIDUAL",
    "Spy",
    "batch",
    "build",
    "build_shallow",
    "configured",
    "cut",
    "draw",
    "fit_for",
    "images",
    "learn",
    "learn_all",
    "often",
    "plain",
    "shallow_backbone",
    "source",
    "stream",
    "task",
    "tiny_backbone",
    "tiny_residual_backbone",
]

QUICK: dict[str, dict[str, Any]] = {
    "nearest-mean": {},
    "streaming-lda": {},
    "linear-probe": {"epochs": 5},
    "ranpac": {"epochs": 2, "batch_size": 8, "projections": 300},
    "coda-prompt": {"epochs": 2, "batch_size": 8, "blocks": 2, "components": 3, "length": 2},
    "replay": {"epochs": 1, "batch_size": 16, "optimizer": "adam", "lr": 1e-3, "memory": 24},
    "icarl": {"epochs": 1, "batch_size": 16, "optimizer": "adam", "lr": 1e-3, "memory": 24},
    "lwf": {"epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 1e-3},
    "wa": {"epochs": 1, "batch_size": 16, "optimizer": "adam", "lr": 1e-3, "memory": 24},
    "der": {"epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 1e-3, "memory": 24},
    "memo": {"epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 1e-3, "memory": 24},
    "dlc": {"base": "replay", "epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 3e-3},
}


def cut(backbone: Backbone) -> Backbone:
    """A vision transformer that ends after two blocks: one that others follow, and the last."""
    backbone.model.blocks = backbone.model.blocks[:BLOCKS]
    return Backbone(backbone.model, name=backbone.name, width=backbone.width, transform=backbone.transform)


@cache
def _built(seed: int) -> Backbone:
    return cut(tiny_backbone(seed))


def shallow_backbone(seed: int = 0) -> Backbone:
    """The tiny backbone with two blocks instead of six, for what many methods do at length."""
    return copy.deepcopy(_built(seed))


def source(classes: int = 6, per_class: int = 8) -> Source:
    names = tuple(f"class {i}" for i in range(classes))
    return Source("patterns", images(classes, per_class, "train"), images(classes, 4, "test"), names)


def stream(classes: int = 6, tasks: int = 3, per_class: int = 8, **options: Any) -> Scenario:
    return class_incremental(source(classes, per_class), tasks=tasks, seed=0, **options)


def colours_config(folder: Path) -> Path:
    """A configuration, with its images beside it: dark, bright, red and green, two tasks of two, `nearest-mean`."""
    rng = np.random.default_rng(0)
    colours = np.array([[20, 20, 20], [230, 230, 230], [220, 20, 20], [20, 220, 20]])
    labels = np.arange(4).repeat(8)
    pixels = np.clip(colours[labels][:, None, None] + rng.normal(0, 8, (32, 12, 12, 3)), 0, 255).astype(np.uint8)
    test = np.arange(32) % 8 >= 6
    archive = folder / "colours.npz"
    np.savez(archive, x_train=pixels[~test], y_train=labels[~test], x_test=pixels[test], y_test=labels[test])
    path = folder / "colours.toml"
    path.write_text(
        f'[scenario]\nsource = "{archive.as_posix()}"\ntasks = 2\n[backbone]\nname = "test_vit"\nweights = "random"\n'
        'size = 32\n[method]\nname = "nearest-mean"\n[fit]\ndevice = "cpu"\n'
    )
    return path


def draw(*shape: int, name: str = "x") -> Tensor:
    """Normal draws by a name, so that no test changes those of another."""
    return torch.randn(shape, generator=generator(0, name, *shape))


def task(i: int, classes: tuple[int, ...]) -> Task:
    """The images of some of eight classes, four of each."""
    every = images(8, 4, "train")
    index = torch.isin(every.labels, torch.tensor(classes)).nonzero()[:, 0]
    return Task(i, f"task {i}", classes, tuple(map(str, classes)), every.subset(index))


def batch(method: Any, data: Any) -> Tensor:
    """All images of a set as inputs, without augmentation."""
    return data.batch(torch.arange(len(data)), plain_view(method.backbone.transform))


BLOCKS = 2
"""Of a vision transformer that is cut."""

RESIDUAL = ("memo", "dlc")
"""Methods that need a network with stages of convolutions."""


def build(name: str, seed: int = 0, backbone: Backbone | None = None, **options: Any) -> Any:
    """Method `name` with short training on a tiny backbone; a base that it learns on is named, or a built method."""
    backbone = backbone or (tiny_residual_backbone if name in RESIDUAL else tiny_backbone)()
    chosen = QUICK.get(name, {"epochs": 2, "batch_size": 8}) | options
    if isinstance(chosen.get("base"), str):
        chosen["base"] = build(chosen["base"], seed, backbone, **{k: v for k, v in options.items() if k == "epochs"})
    return configured(METHODS[name], backbone, seed=seed, **chosen)


def build_shallow(name: str, seed: int = 0, **options: Any) -> Any:
    """What `build` gives, on the shallow backbone; residual networks are tiny anyway."""
    return build(name, seed, None if name in RESIDUAL else shallow_backbone(), **options)


OFTEN = {"inflora", "inflora+align", "inflora+calibrate+align", "inflora+align+calibrate", "duallora", "color",
         "ranpac", "replay", "der", "nearest-mean", "streaming-lda", "seq-lora"}  # fmt: skip
"""The methods that stand for the others where a test is long; `pytest -m slow` takes all of them."""


def often(names: Iterable[str]) -> list[Any]:
    """Parameters of a test: the names, those that others stand for marked as slow."""
    return [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in names]


def configured(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A method, its recipes spelled out as in a configuration: `configured(InfLoRA, backbone, rank=2, epochs=1)`."""
    known = options_of(method)
    flat = {key: value for key, value in options.items() if key in known}
    rest = {key: value for key, value in options.items() if key not in known}
    return method(*args, **rest, **arguments("method", flat, known))


def fit_for(method: Any, **options: Any) -> Fit:
    return Fit(method, method.backbone.transform, augmentation=Augmentation((0.8, 1.0)), device="cpu", **options)


def plain(method: Any) -> Fit:
    """A fit whose samples are not augmented."""
    fit = fit_for(method)
    fit.augmentation = None
    return fit


def learn_all(method: Any, scenario: Scenario, fit: Fit | None = None) -> Any:
    fit = fit or fit_for(method)
    for task in (scenario[i] for i in range(len(scenario))):
        fit.begin(str(task.id))
        method.learn(task, fit)
    return method


def learn(method: Any, number: int, task: Task, fit: Any = None) -> Any:
    """Task `number` of a method's life."""
    fit = fit or fit_for(method)
    fit.begin(str(number))
    method.learn(task, fit)
    return method


class Spy:
    """The real fit; before its training call runs, `look(loss, data, params)` sees what that was given.

    Attributes:
        options: the fields of the recipe, and the other keywords, of the latest call.
    """

    def __init__(self, method: Any, look: Callable[[Any, ImageSet, list[Any]], None] = lambda *_: None) -> None:
        self.fit, self.look, self.options = fit_for(method), look, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fit, name)

    def __call__(self, data: ImageSet, loss: Any, params: Any, training: Training, **options: Any) -> list[float]:
        groups, self.options = list(params), vars(training) | options
        self.look(loss, data, [tensor for group in groups for tensor in group["params"]])
        return self.fit(data, loss, groups, training, **options)
