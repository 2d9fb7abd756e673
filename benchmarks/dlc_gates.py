"""What better gates would be worth to DLC: its own, beside those of an oracle that opens the right task's plugin alone.

    LAMELLA_DATA=DIR python benchmarks/dlc_gates.py RUN [RUN ...]

Each RUN is the folder of a finished run of `dlc`. The images are those that the run was measured on. "Right task" is
how often the largest gate is that of the image's task. The oracle is told the task, so it is a bound and no method.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.data.samples import Samples
from lamella.learner.config.document import build_scenario
from lamella.learner.learner import Learner
from lamella.methods.dlc.dlc import DLC
from lamella.methods.dlc.weighting import aggregated

COLUMNS = ("own gates", "right task", "an oracle's gates")


@torch.no_grad()
def main(runs: Annotated[list[Path], typer.Argument(metavar="RUN...")]) -> None:
    """Print a row for each run, in per cent of its images."""
    table = Table("", *COLUMNS)
    for run in runs:
        table.add_row(str(run), *(f"{100 * share:.1f}" for share in shares(run)))
    Console(width=110).print(table)


def shares(run: Path) -> list[float]:
    """Return the shares of a run's images that are right: by its gates, in the largest gate, by an oracle's gates."""
    learner = Learner.load(run / "model")
    method = learner.model.method.eval()
    if not isinstance(method, DLC):
        raise typer.BadParameter(f"'{run}' is a run of {learner.name}; give one of dlc")
    scenario = build_scenario(learner.config)
    found: list[Tensor] = []
    for i in range(len(scenario)):
        part = scenario.test(i) if learner.config["run"]["evaluate_on"] == "test" else scenario[i].validation
        assert part is not None, f"{run} was measured on a validation part, and its configuration has none"
        fit = learner.fit()
        fit.begin(f"gates-{i}")
        fit.scan(part, lambda x, y, task=i: found.append(right(method, x, y, task)), name="gates")
    return torch.cat(found).double().mean(0).tolist()


def right(method: DLC, x: Samples, y: Tensor, task: int) -> Tensor:
    """Return (n, 3) whether an image of a task is right: by the gates, in the largest gate, by an oracle's gates."""
    features = method.tails(method.tails.trunk(x), ["", *method.plugins])
    gates = method.unit(features)
    oracle = torch.zeros_like(gates)
    oracle[:, task] = 1
    ids = torch.tensor(method.classes)
    own, told = (ids[method.heads(aggregated(features, g)).argmax(1)] == y for g in (gates, oracle))
    return torch.stack([own, gates.argmax(1) == task, told], 1)


if __name__ == "__main__":
    typer.run(main)
