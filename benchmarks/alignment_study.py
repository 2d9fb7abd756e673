"""What limits alignment, asked on a validation part of the first tasks: drift, ceiling, covariance, map, features.

    LAMELLA_DATA=DIR python benchmarks/alignment_study.py train runs/study/default --tasks 5
    LAMELLA_DATA=DIR python benchmarks/alignment_study.py train runs/study/zero --tasks 5 method.head_start=zero
    python benchmarks/alignment_study.py compare runs/study/*

`train` learns the first tasks of a configuration on three quarters of their training images and keeps features, before
and after each task, of the training images and of the held-back quarter. `compare` scores ways of aligning them on that
quarter; it trains nothing and takes seconds. No test image is read.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lamella.common.progress import bars
from lamella.common.randomness import generator
from lamella.learner.config.document import build_scenario, load_config
from lamella.learner.learner import Learner
from lamella.learner.scores import correct
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.methods.parts.drift import affine_drift, mean_drift

app = typer.Typer(add_completion=False)
Features = dict[str, Tensor]


@app.command()
def train(
    out: Path,
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    config: str = "cifar100-part",
    tasks: int = 5,
    share: float = 0.25,
) -> None:
    """Learn the first tasks and keep features under every model on the way."""
    table = load_config(config, [f"scenario.validation={share}", "method.align=false", *(overrides or [])])
    scenario, learner = build_scenario(table), Learner(table)
    dump: dict[str, Any] = {"overrides": overrides or [], "train": {}, "val": {}, "train_labels": {}, "val_labels": {}}
    seconds = 0.0
    for t in range(tasks):
        if t:
            dump["train"][t - 1, t] = _features(learner, scenario[t].train)
        record = learner.learn(scenario[t], progress=bars)
        seconds += record.seconds["total"]
        held_back = scenario[t].validation
        if held_back is None:
            raise ValueError(f"a share of {share} holds no image of task {t} back; give a larger --share")
        dump["train_labels"][t], dump["val_labels"][t] = scenario[t].train.labels, held_back.labels
        last = t == tasks - 1
        for j in range(0 if last else t, t + 1):
            dump["train"][t, j] = _features(learner, scenario[j].train)
        for j in range(t + 1):
            dump["val"][t, j] = _features(learner, scenario[j].validation)
    dump |= {"tasks": tasks, "seconds": seconds, "heads": _own_heads(learner, dump, tasks)}
    out.mkdir(parents=True, exist_ok=True)
    torch.save(dump, out / "features.pt")
    print(f"{out}: {seconds:.0f} s of learning")


def _features(learner: Learner, data: Any) -> Features:
    """Per kind (n, d): the class token that a head sees, the mean of the others, class tokens of earlier blocks."""
    parts: dict[str, list[Tensor]] = {}
    model: Any = learner.backbone.model
    tokens: dict[str, Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda m, i, o, name=f"block {n}": tokens.__setitem__(name, o[:, 0]))
        for n, block in enumerate(model.blocks)
        if n % 3 == 2
    ]
    hooks.append(model.norm.register_forward_hook(lambda m, i, o: tokens.__setitem__("mean", o[:, 1:].mean(1))))

    def observe(x: Tensor, y: Tensor) -> None:
        tokens["class"] = learner.method.features(x)
        for kind, value in tokens.items():
            parts.setdefault(kind, []).append(value.float().clone())

    fit = learner.fit()
    fit.begin("study")
    learner.method.eval()
    fit.scan(data, observe)
    for hook in hooks:
        hook.remove()
    return {kind: torch.cat(values) for kind, values in parts.items()}


def _own_heads(learner: Learner, dump: dict[str, Any], tasks: int) -> float:
    """Share of validation images that the method's own heads get right after the last task."""
    right = total = 0
    for j in range(tasks):
        logits = learner.method.heads(dump["val"][tasks - 1, j]["class"])
        target = torch.tensor([learner.method.classes.index(c) for c in dump["val_labels"][j].tolist()])
        right, total = right + int(correct(logits, target).sum()), total + len(target)
    return right / total


@app.command()
def compare(folders: list[Path]) -> None:
    """Final validation accuracy of every way of aligning, a column per training."""
    dumps = {folder.name: torch.load(folder / "features.pt", weights_only=False) for folder in folders}
    table = Table("alignment", *dumps)
    table.add_row("own heads", *(f"{100 * d['heads']:.1f}" for d in dumps.values()))
    for name, options in VARIANTS.items():
        table.add_row(name, *(f"{100 * _aligned(dump, **options):.1f}" for dump in dumps.values()))
    table.add_row("seconds of learning", *(f"{d['seconds']:.0f}" for d in dumps.values()))
    Console(width=40 + 14 * len(dumps)).print(table)


VARIANTS: dict[str, dict[str, Any]] = {
    "fresh statistics of all classes (ceiling)": {"fresh": True},
    "frozen means": {"drift": "none"},
    "mean shift": {"drift": "mean"},
    "affine, ridge 3 (the default)": {},
    "affine, ridge 30": {"ridge": 30.0},
    "affine, ridge 1": {"ridge": 1.0},
    "affine, ridge 0.3": {"ridge": 0.3},
    "affine, ridge 0.03": {"ridge": 0.03},
    "shrinkage 0.03": {"shrinkage": 0.03},
    "shrinkage 0.3": {"shrinkage": 0.3},
    "own covariance 0.05": {"own": 0.05},
    "own covariance 0.1": {"own": 0.1},
    "own covariance 0.2": {"own": 0.2},
    "own covariance 0.1, ridge 1": {"own": 0.1, "ridge": 1.0},
    "own covariance 0.1, ceiling": {"own": 0.1, "fresh": True},
    "class + mean token": {"kinds": ("class", "mean")},
    "class + mean token, own covariance 0.1": {"kinds": ("class", "mean"), "own": 0.1},
    "class + mean token, ceiling": {"kinds": ("class", "mean"), "fresh": True},
    "class token of blocks 9 and 12": {"kinds": ("class", "block 8")},
    "random features, ridge on samples": {"random": 2000},
    "random features, ceiling": {"random": 2000, "fresh": True},
}


def _aligned(
    dump: dict[str, Any], *, kinds: tuple[str, ...] = ("class",), drift: str = "affine", ridge: float = 3.0,
    shrinkage: float = 0.1, own: float = 0.0, fresh: bool = False, random: int = 0,
) -> float:  # fmt: skip
    tasks = dump["tasks"]

    def stacked(part: str, t: int, j: int) -> Tensor:
        return torch.cat([dump[part][t, j][kind] for kind in kinds], dim=1).double()

    width = stacked("val", 0, 0).shape[1]
    shared, apart = ClassGaussians(width), {}
    for t in range(tasks):
        labels = dump["train_labels"][t]
        if t and not fresh and drift != "none":
            before, after = stacked("train", t - 1, t), stacked("train", t, t)
            moved = affine_drift(before, after, ridge) if drift == "affine" else mean_drift(before, after)
            for statistics in (shared, *apart.values()):
                statistics.move(*moved)
        x = stacked("train", tasks - 1 if fresh else t, t)
        shared.add(x, labels, sorted(set(labels.tolist())))
        for c in sorted(set(labels.tolist())):
            apart[c] = ClassGaussians(width)
            apart[c].add(x, labels, [c])
    score = _quadratic(shared, apart, shrinkage, own) if own else lambda f: shared.linear_discriminant(f, shrinkage)
    if random:
        score = _random_ridge(shared, random, shrinkage)
    right = total = 0
    for j in range(tasks):
        target = torch.tensor([shared.classes.index(c) for c in dump["val_labels"][j].tolist()])
        right += int(correct(score(stacked("val", tasks - 1, j)), target).sum())
        total += len(target)
    return right / total


def _quadratic(shared: ClassGaussians, apart: dict[int, ClassGaussians], shrinkage: float, own: float) -> Any:
    """Quadratic discriminant with (1 - own) of the shared covariance and `own` of the class's."""
    common = shrunk(shared.covariance, shrinkage)

    def score(f: Tensor) -> Tensor:
        columns = []
        for c, mean in zip(shared.classes, shared.means, strict=True):
            S = (1 - own) * common + own * apart[c].covariance
            L = torch.linalg.cholesky(S)
            z = torch.linalg.solve_triangular(L, (f - mean).T, upper=False)
            columns.append(-0.5 * z.square().sum(0) - L.diagonal().log().sum())
        return torch.stack(columns, 1)

    return score


def _random_ridge(shared: ClassGaussians, width: int, shrinkage: float, samples: int = 100) -> Any:
    """Ridge regression on ReLU random projections (RanPAC) of samples from the stored class Gaussians."""
    draws = generator(0, "random features")
    d = shared.means.shape[1]
    root = torch.linalg.cholesky(shrunk(shared.covariance, shrinkage))
    noise = torch.randn(len(shared.means), samples, d, generator=draws, dtype=torch.float64)
    x = (shared.means[:, None] + noise @ root.T).flatten(0, 1)
    y = nn.functional.one_hot(torch.arange(len(shared.means)).repeat_interleave(samples)).double()
    projection = torch.randn(d, width, generator=draws, dtype=torch.float64)
    h = (x @ projection).relu()
    gram = h.T @ h
    W = torch.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * torch.eye(width, dtype=gram.dtype), h.T @ y)
    return lambda f: (f @ projection).relu() @ W


if __name__ == "__main__":
    app()
