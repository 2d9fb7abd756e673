"""How far DualLoRA's gates open for images of each task, and which task it takes them to be of.

    LAMELLA_DATA=DIR python benchmarks/duallora_gates.py RUN [--images 40]

Training images of RUN's tasks go through its last model. A gate should be 1 for the task's own images and small for
all others; what it is on average over layers is printed with how many images each task was chosen for.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from lamella.common.randomness import generator
from lamella.data.transform import plain_view
from lamella.learner.config.document import build_scenario
from lamella.learner.learner import Learner
from lamella.methods.duallora import DualLoRA


@torch.no_grad()
def main(run: Path, images: Annotated[int, typer.Option(min=1, help="Of each task.")] = 40) -> None:
    """Print a row for the images of each task."""
    learner = Learner.load(run / "model")
    method, scenario = _duallora(learner.method.eval()), build_scenario(learner.config)
    tasks = range(len(learner.tasks))
    table = Table("images of task", *(f"gate {i}" for i in tasks), "task chosen right", title=str(run))
    view = plain_view(method.backbone.transform)
    for task in tasks:
        data = scenario[task].train
        order = torch.randperm(len(data), generator=generator(0, "gates", task))[:images]
        method.signatures.reading(method.features, data.batch(order, view))
        readers = method.signatures.readers.values()
        gates = torch.stack([r.signature.normalised(r.rho).clamp(max=1).mean(0) for r in readers]).mean(0)
        chosen = method.signatures.scores().argmax(1)
        table.add_row(str(task), *(f"{gate:.2f}" for gate in gates), f"{int((chosen == task).sum())} of {len(order)}")
    Console(width=40 + 8 * len(tasks)).print(table)


def _duallora(method: nn.Module) -> DualLoRA:
    """The method itself, without the parts around it."""
    while not isinstance(method, DualLoRA):
        inner = getattr(method, "base", None)
        if not isinstance(inner, nn.Module):
            raise typer.BadParameter("this run has another method; give one of duallora")
        method = inner
    return method


if __name__ == "__main__":
    typer.run(main)
