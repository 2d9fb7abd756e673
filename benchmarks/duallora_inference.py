"""What DualLoRA's gated branches cost at test time: its prediction against the frozen forward pass and InfLoRA's.

    python benchmarks/duallora_inference.py runs/duallora-inference
    python benchmarks/duallora_inference.py runs/duallora-inference --device cuda --batch 128 --repeats 50

Time does not depend on what is learned, only on how many branches there are and how wide: so weights and images are
random. By default every direction of a task's few images is kept (energy 1), which gives each residual branch the rank
that it may have at most: a bound, where trained bases are smaller. The frozen forward pass is that of timm's own model.
All three take turns within one process, so that a busy machine slows all of them; printed are medians of the ratios
within a round, with the middle half of them, of processor time on a CPU. Writes duallora-inference.json.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.backbones import load_backbone
from lamella.common.files import write_json
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio_text
from lamella.data.images import TensorSet
from lamella.data.scenario import Task
from lamella.methods import METHODS
from lamella.training.fit import Fit
from lamella.training.recipe import Training

CLASSES = 10
"""Of a task."""
PAIRS = (("duallora", "backbone"), ("inflora", "backbone"), ("duallora", "inflora"))


def main(
    out: Path,
    backbone: str = "vit_tiny_patch16_224",
    size: int = 128,
    tasks: int = 10,
    energy: float = 1.0,
    batch: int = 32,
    repeats: int = 25,
    device: str = "cpu",
) -> None:
    """Time predictions after 1, half, and all of the tasks."""
    stages = sorted({1, max(1, tasks // 2), tasks})
    plain, *others = (load_backbone(backbone, weights="random", size=size, crop=1.0).to(device) for _ in range(3))
    teach = {"duallora": {"energy": energy}, "inflora": {}}
    pairs = zip(teach.items(), others, strict=True)
    learners = {name: _Learner(name, own, device, options) for (name, options), own in pairs}
    x = torch.randn(batch, 3, size, size, generator=generator(0, "images")).to(device)
    forms: dict[str, Callable[[], Tensor]] = {"backbone": lambda: plain.model(x)}
    forms |= {name: lambda method=learner.method: method.predict(x) for name, learner in learners.items()}
    points: list[dict[str, Any]] = []
    for number in range(1, tasks + 1):
        for learner in learners.values():
            learner.learn_another()
        if number in stages:
            with torch.no_grad():
                seconds = interleaved(forms, repeats, processor=device == "cpu")
            points.append({"tasks": number, "rank": learners["duallora"].residual_rank(), "seconds": seconds})
    setting = {"backbone": backbone, "size": size, "energy": energy, "batch": batch, "repeats": repeats,
               "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}  # fmt: skip
    write_json(out / "duallora-inference.json", {"setting": setting, "points": points})
    _print(points, f"{backbone}, {size} pixels, {batch} images, {device}, {torch.get_num_threads()} threads")


class _Learner:
    """A method that is taught tasks of a few random images."""

    def __init__(self, name: str, backbone: Any, device: str, options: dict[str, Any]) -> None:
        self.method: Any = METHODS[name](backbone, training=Training(epochs=1, batch_size=2 * CLASSES), **options)
        self.fit = Fit(self.method, backbone.transform, device=device)
        self.size, self.learned = backbone.transform.size, 0

    def learn_another(self) -> None:
        number, self.learned = self.learned, self.learned + 1
        classes = tuple(range(number * CLASSES, (number + 1) * CLASSES))
        x = torch.randn(2 * CLASSES, 3, self.size, self.size, generator=generator(0, "task", number))
        images = TensorSet(x, torch.tensor(classes).repeat(2))
        self.fit.begin(str(number))
        self.method.learn(Task(number, f"task {number}", classes, tuple(map(str, classes)), images), self.fit)

    def residual_rank(self) -> float:
        """Mean number of directions that an adapted layer's residual branches reduce its input to."""
        branches = [
            [branch for n in range(self.learned) for branch in site.layer.of(f"residual-{n}")]
            for site in self.method.sites
        ]
        return statistics.mean(sum(branch.rank for branch in own) for own in branches)


def _print(points: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for column in ("tasks", "rank a layer", "frozen forward", *(" / ".join(pair) for pair in PAIRS)):
        table.add_column(column, justify="right")
    for point in points:
        seconds = point["seconds"]
        told = [ratio_text(seconds[first], seconds[second]) for first, second in PAIRS]
        frozen = f"{1000 * statistics.median(seconds['backbone']):.1f} ms"
        table.add_row(str(point["tasks"]), f"{point['rank']:.0f}", frozen, *told)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
