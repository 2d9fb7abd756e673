"""How much of its own covariance a class should have, on Gaussians that are known: equal and unequal counts.

    python benchmarks/own_covariance.py

Every class has the shared covariance, distorted by a log-normal factor along axes of its own (`apart`: its deviation).
"share" is one for all classes; "prior" counts images: n / (n + prior). "estimated" is the prior whose shares have the
least expected squared error: with the shared covariance as unit, (d^2 + d) / mean |S_c - I|^2, less what sampling alone
makes of it. Accuracies on 100 new samples a class, means of three worlds; where counts differ: all / small / large.
"""

import statistics

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.common.randomness import generator
from lamella.memory.gaussians import ClassGaussians, shrunk

SHRINKAGE = 0.1
SHARES = (0.0, 0.1, 0.3)
PRIORS = (150.0, 600.0, 2400.0)
WORLDS = {  # width, images of each class, apart, distance of the means
    "20 classes of 65, own shapes": (192, [65] * 20, 0.3, 2.0),
    "5 of 20, 5 of 500, own shapes": (64, [20] * 5 + [500] * 5, 0.3, 2.0),
    "5 of 20, 5 of 500, nearly one": (64, [20] * 5 + [500] * 5, 0.1, 2.0),
    "5 of 20, 5 of 500, one shape": (64, [20] * 5 + [500] * 5, 0.0, 2.0),
}


def main(seeds: int = 3) -> None:
    """Print accuracy by rule and world; where counts differ, that of the small and of the large classes too."""
    table = Table("rule", *WORLDS)
    told = {name: [_scores(seed, *world) for seed in range(seeds)] for name, world in WORLDS.items()}
    for rule in next(iter(told.values()))[0]:
        table.add_row(rule, *(_cell([scores[rule] for scores in runs]) for runs in told.values()))
    Console(width=140).print(table)


def _cell(runs: list[tuple[float, ...]]) -> str:
    return " / ".join(f"{100 * statistics.mean(values):.1f}" for values in zip(*runs, strict=True))


def _scores(seed: int, width: int, counts: list[int], apart: float, distance: float) -> dict[str, tuple[float, ...]]:
    """By rule: accuracy over all classes, and over the small and the large ones where counts differ."""
    means, roots = _world(seed, width, len(counts), apart, distance)
    x, labels = _samples(seed, "train", means, roots, counts)
    known = ClassGaussians(width, per_class=True)
    known.add(x, labels, range(len(counts)))
    f, target = _samples(seed, "test", means, roots, [100] * len(counts))
    rules: dict[str, tuple[float, float | None]] = {f"share {share}": (share, None) for share in SHARES}
    rules |= {f"prior {prior:.0f}": (0.0, prior) for prior in PRIORS}
    rules["estimated"] = (0.0, _estimated(known))
    small = torch.tensor(counts)[target] < max(counts)
    parts = [slice(None)] if min(counts) == max(counts) else [slice(None), small, ~small]
    found: dict[str, tuple[float, ...]] = {}
    for rule, shares in rules.items():
        right = (known.quadratic_discriminant(f, SHRINKAGE, *shares).argmax(1) == target).double()
        found[rule] = tuple(float(right[part].mean()) for part in parts)
    return found


def _world(seed: int, width: int, classes: int, apart: float, distance: float) -> tuple[Tensor, Tensor]:
    """Means (c, d), and roots (c, d, d) that turn standard normal rows into samples."""
    draws = generator(seed, "world")
    new = lambda *shape: torch.randn(shape, generator=draws, dtype=torch.float64)  # noqa: E731
    axes = torch.linalg.qr(new(width, width)).Q
    shared = axes * torch.linspace(-0.75, 0.75, width, dtype=torch.float64).exp() @ axes.T
    turns = torch.linalg.qr(new(classes, width, width)).Q
    own = turns * (apart * new(classes, 1, width)).exp() @ turns.mT
    return distance * new(classes, width) @ shared / width**0.5, own @ shared


def _samples(seed: int, part: str, means: Tensor, roots: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    draws = generator(seed, part)
    noise = [torch.randn(n, means.shape[1], generator=draws, dtype=torch.float64) for n in counts]
    x = torch.cat([mean + z @ root for mean, root, z in zip(means, roots, noise, strict=True)])
    return x, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _estimated(known: ClassGaussians) -> float:
    L = torch.linalg.cholesky(shrunk(known.covariance, SHRINKAGE))
    left = torch.linalg.solve_triangular(L, known.scatters.double(), upper=False)
    own = torch.linalg.solve_triangular(L, left.mT, upper=False) / (known.counts[:, None, None] - 1)
    weight = known.counts / known.counts.sum()
    unit = (weight[:, None, None] * own).sum(0)
    size = unit.square().sum() + unit.trace() ** 2
    seen = (own - unit).square().sum((1, 2)) - size / (known.counts - 1) * (1 - weight)
    return float(size / (weight * seen).sum().clamp_min(1e-9))


if __name__ == "__main__":
    typer.run(main)
