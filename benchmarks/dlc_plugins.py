"""How much DLC's plugins change: of the weights they are on, and of the features.

    LAMELLA_DATA=DIR python benchmarks/dlc_plugins.py RUN [--images 64]

RUN is the folder of a finished run of `dlc`. For each convolution with plugins the table has |update| / |weight| of
each plugin, and for training images of the first task how far the features with a plugin are from those without, as a
share of their norm.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from lamella.learner.config.document import build_scenario
from lamella.learner.learner import Learner
from lamella.methods.dlc.dlc import DLC


@torch.no_grad()
def main(run: Path, images: Annotated[int, typer.Option(min=1)] = 64) -> None:
    """Print a row for each convolution, and one for the features."""
    learner = Learner.load(run / "model")
    method = learner.model.method.eval()
    if not isinstance(method, DLC):
        raise typer.BadParameter(f"'{run}' is a run of {learner.name}; give one of dlc")
    table = Table("", *method.plugins, title=str(run))
    for site in method.tails.sites:
        weight = site.layer.weight
        updates = [torch.stack([b.delta(weight.shape) for b in site.layer.of(name)]).sum(0) for name in method.plugins]
        table.add_row(site.name, *(f"{float(update.norm() / weight.norm()):.1%}" for update in updates))
    first = build_scenario(learner.config)[0].train
    x = first.batch(torch.arange(min(images, len(first))), learner.backbone.transform.view())
    plain, *tuned = method.tails(method.tails.trunk(x), ["", *method.plugins]).unbind(1)
    table.add_row("features", *(f"{float((f - plain).norm() / plain.norm()):.1%}" for f in tuned))
    Console(width=40 + 11 * len(method.plugins)).print(table)


if __name__ == "__main__":
    typer.run(main)
