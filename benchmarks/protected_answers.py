"""What InfLoRA would protect in a language model by each rule, and what that leaves to the next task.

    LAMELLA_DATA=DIR python benchmarks/protected_answers.py superni15 \\
        "scenario.sources=['superni/task363', 'superni/task1687']"

From the training rows of the first task, the rules choose directions of what the adapted layers read until these hold
`method.energy` of what the rule counts:

    moment      squared eigenvalues of the second moment of inputs, as in InfLoRA's code
    data        its eigenvalues: the energy of the inputs, as in the paper
    centred     the energy of inputs without their mean, whose direction is protected, too
    tokens      the energy of inputs that were brought to length 1, so that each token counts alike

Then held-back rows tell how much of their inputs lies in these directions, each token counting alike: of the first task
that should be all, of the second one as little as can be, because a branch can read nothing that is protected.
"""

from dataclasses import dataclass, field
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.adapters.adapter import watch
from lamella.data.scenario import Task
from lamella.learner.config.document import build_scenario, load_config
from lamella.learner.learner import Learner
from lamella.memory.subspace import count_by_share
from lamella.methods.shared.free_directions import ReadsFreeDirections

RULES = ("moment", "data", "centred", "tokens")


@dataclass
class Sums:
    """Sums over the tokens that a layer reads."""

    width: int
    count: int = 0
    plain: Tensor = field(init=False)
    alike: Tensor = field(init=False)
    total: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.plain, self.alike = torch.zeros(2, self.width, self.width, dtype=torch.float64)
        self.total = torch.zeros(self.width, dtype=torch.float64)

    def __call__(self, x: Tensor) -> None:
        tokens = x.reshape(-1, self.width).double()
        ones = tokens / tokens.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.plain += tokens.T @ tokens
        self.alike += ones.T @ ones
        self.total += tokens.sum(0)
        self.count += len(tokens)


def main(
    config: str,
    changes: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None,
    energy: float = 0.95,
    rows: Annotated[int, typer.Option(help="At most so many rows of each part.")] = 64,
) -> None:
    """Print a row for each rule."""
    document = load_config(config, ["method.name=inflora", *(changes or [])])
    learner, scenario = Learner(document), build_scenario(document)
    first, second = scenario[0], scenario[1]
    known = sums(learner, first, rows, held=False)
    old, new = sums(learner, first, rows, held=True), sums(learner, second, rows, held=True)
    page = Table("rule", "directions: least", "median", "most", "of the first task, %", "of the second, %")
    for rule in RULES:
        bases = {layer: basis(rule, found, energy) for layer, found in known.items()}
        counts = sorted(U.shape[1] for U in bases.values())
        inside = [100 * sum(held_in(bases[layer], part[layer]) for layer in bases) / len(bases) for part in (old, new)]
        page.add_row(
            rule, str(counts[0]), str(counts[len(counts) // 2]), str(counts[-1]), *(f"{s:.1f}" for s in inside)
        )
    width = next(iter(known.values())).width
    Console(width=100).print(f"{len(known)} layers of {width} inputs; energy {energy}", page)


def sums(learner: Learner, task: Task, rows: int, *, held: bool) -> dict[str, Sums]:
    """Pass training or held-back rows of a task through the network; return by layer the sums over its inputs."""
    method = learner.method
    assert isinstance(method, ReadsFreeDirections)
    part = task.validation if held else task.train
    assert part is not None, "the settings leave no validation part"
    firsts = [site for site in method.sites if method.reads_as[site.name] == site.name]
    fit = learner.fit()
    fit.begin(f"{task.name}-{held}")
    with watch(firsts, lambda layer: Sums(layer.weight.shape[1])) as found:
        data = part.subset(range(min(rows, len(part))))
        fit.scan(data, lambda x, _: method.backbone.show(x, firsts), any_order=True, name="inputs")
    return found


def basis(rule: str, found: Sums, energy: float) -> Tensor:
    """Return the directions (d, k) that a rule protects."""
    G, mean = found.plain / found.count, found.total / found.count
    matrix = {"centred": G - torch.outer(mean, mean), "tokens": found.alike}.get(rule, G)
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    U = vectors[:, : count_by_share(values**2 if rule == "moment" else values, energy)]
    return torch.linalg.qr(torch.cat([U, mean[:, None]], 1))[0] if rule == "centred" else U


def held_in(U: Tensor, found: Sums) -> float:
    """Return the share of the inputs that lies in the span of U (d, k), each token counting alike."""
    return float((U.T @ found.alike @ U).trace() / found.alike.trace())


if __name__ == "__main__":
    typer.run(main)
