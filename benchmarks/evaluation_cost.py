"""What the accuracy matrix costs while features of test images are remembered, beside computing them all anew.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_cost.py
    OMP_NUM_THREADS=1 python benchmarks/evaluation_cost.py --backbone vit_tiny_patch16_224 --size 64 --methods inflora

After each task of a synthetic stream all tasks so far are scored in both forms, in turn. Printed are the passes through
the backbone over a task's test images, and the median and middle half of the ratios of processor time (by the clock on
a GPU) of the whole matrix. Writes evaluation-cost-BACKBONE.json.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lamella.backbones.feature_cache import Recall
from lamella.common.files import write_json
from lamella.common.timing import interleaved, ratio_text
from lamella.experiments.bench.streams import quick_learner, synthetic_task
from lamella.learner.learner import Learner

NAMES = "nearest-mean,linear-probe,ranpac,color,inflora"
FORMS = ("anew", "remembered")


class Never(Recall):
    """Remembers nothing at all, also not within a batch."""

    passes = 0

    def features(self, backbone: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.passes += 1
        return compute(x)


class Counting(Recall):
    """Counts what it had to compute."""

    passes = 0

    def features(self, backbone: nn.Module, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        def counted(images: Tensor) -> Tensor:
            self.passes += 1
            return compute(images)

        return super().features(backbone, counted, x)


def main(
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = NAMES,
    backbone: str = "fractal-vit-micro",
    size: Annotated[int | None, typer.Option(help="Side of the images; the backbone's own where left out.")] = None,
    tasks: int = 10,
    images: Annotated[int, typer.Option(help="Test images of a task, in one batch.")] = 64,
    repeats: int = 5,
    device: str = "cpu",
    out: Path = Path("runs/benchmarks"),
) -> None:
    """Print the table."""
    table = {"name": backbone, "weights": "random"} | ({} if size is None else {"size": size})
    setting = {"backbone": table, "tasks": tasks, "images": images, "repeats": repeats, "device": device,
               "threads": torch.get_num_threads(), "torch": torch.__version__}  # fmt: skip
    shown = Table("method", "passes, anew", "passes, remembered", "time", title=f"{backbone}, {tasks} tasks, {device}")
    found: dict[str, Any] = {}
    for name in methods.split(","):
        learner = quick_learner(table, name, 32, {"device": device})
        found[name] = own = measure(learner, tasks, images, repeats)
        seconds = (own["seconds"][form] for form in reversed(FORMS))
        shown.add_row(name, *(str(own["passes"][form]) for form in FORMS), ratio_text(*seconds))
        write_json(out / f"evaluation-cost-{backbone}.json", {"setting": setting, "methods": found})
    Console(width=120).print(shown)


def measure(learner: Learner, tasks: int, images: int, repeats: int) -> dict[str, Any]:
    """By form: seconds of the whole matrix in each repeat, and the passes that each made."""
    kinds = {"anew": Never, "remembered": Counting}
    recalls = {form: [[kind() for _ in range(tasks)] for _ in range(repeats)] for form, kind in kinds.items()}
    seconds = {form: [0.0] * repeats for form in FORMS}
    tests = [synthetic_task(i, images, learner.backbone.transform.size) for i in range(tasks)]
    for i, task in enumerate(tests):
        learner.learn(task)

        def row(memories: list[Any], seen: int = i + 1) -> None:
            for test, memory in zip(tests[:seen], memories, strict=False):
                learner.evaluate(test.train, test.classes, recall=memory)

        for r in range(repeats):
            forms = {form: (lambda form=form, r=r: row(recalls[form][r])) for form in FORMS}
            times = interleaved(forms, 1, 0, processor=learner.fit().device.type == "cpu")
            for form in FORMS:
                seconds[form][r] += times[form][0]
    passes = {form: sum(memory.passes for memory in recalls[form][0]) for form in FORMS}
    return {"seconds": seconds, "passes": passes}


if __name__ == "__main__":
    typer.run(main)
