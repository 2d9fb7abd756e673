"""How often the scores that routers use name the right task, on frozen features of held-back images.

    LAMELLA_DATA=DIR python benchmarks/task_scores.py digits
    LAMELLA_DATA=DIR python benchmarks/task_scores.py mnist --per-class 500

Tasks of two classes, the bundled backbone. A fifth of the training images is held back; the test images are not read.
Every score learns the other images task after task (memory/task_scores.py).
"""

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella import Learner
from lamella.common.randomness import generator
from lamella.data.scenario import class_incremental
from lamella.data.sources.load import load_source
from lamella.learner.config.wanted import Wanted
from lamella.memory.task_scores import TaskCentres, TaskGaussians, TaskRegression

Keys = TaskCentres | TaskGaussians | TaskRegression


def main(
    source: str,
    per_class: Annotated[int | None, typer.Option(help="Training images of each class, instead of all.")] = None,
    seed: int = 0,
) -> None:
    """Print the share of held-back images whose task has the best score."""
    data = load_source(source, per_class=per_class)
    scenario = class_incremental(data, tasks=len(data.class_names) // 2, seed=seed, validation=0.2)
    learner = Learner(Wanted(seed=seed, start="digits", settings=("method.name=nearest-mean",)).config("image"))
    fit, backbone = learner.model.fit(), learner.backbone
    learned: list[tuple[Tensor, Tensor]] = []
    held: list[Tensor] = []
    for task in scenario:
        learned.append((fit.features(task.train, backbone), task.train.labels))
        assert task.validation is not None
        held.append(fit.features(task.validation, backbone))
    table = Table("scores", "right task, %", title=f"{source}, {sum(map(len, held))} held-back images")
    for name, new, apart in rows(backbone.width, seed):
        table.add_row(name, f"{100 * right(new(), learned, held, apart):.1f}")
    Console(width=80).print(table)


def rows(width: int, seed: int) -> list[tuple[str, Callable[[], Keys], bool]]:
    """Return the name of each row, what makes its scores, and whether classes have columns of their own."""

    def regression(projections: int, ridge: float = 0.01) -> Callable[[], Keys]:
        return lambda: TaskRegression(width, projections, generator(seed, "router"), ridge)

    found: list[tuple[str, Callable[[], Keys], bool]] = [
        ("nearest of 4 centres a task", lambda: TaskCentres(width), True)
    ]
    found += [(f"Gaussians, shrinkage {s}", lambda s=s: TaskGaussians(width, s), True) for s in (0.1, 0.01)]
    for count in (0, 500, 1000, 2000):
        for apart in (False, True):
            on = f"{count} random projections" if count else "features"
            found.append((f"regression on {on}, a column a {'class' if apart else 'task'}", regression(count), apart))
    found += [(f"on 1000, a column a class, ridge {r}", regression(1000, r), True) for r in (0.001, 0.1)]
    return found


def right(keys: Keys, learned: list[tuple[Tensor, Tensor]], held: list[Tensor], apart: bool) -> float:
    """Return the share of held-back samples whose task has the best score."""
    for features, labels in learned:
        keys.add(features, labels if apart else torch.zeros_like(labels))
    hits = [(keys.scores(features).argmax(1) == t).double() for t, features in enumerate(held)]
    return float(torch.cat(hits).mean())


if __name__ == "__main__":
    typer.run(main)
