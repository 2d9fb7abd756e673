"""Fifty tasks of two classes, and twenty unequal ones, without the number of tasks being known.

    LAMELLA_DATA=DIR python benchmarks/long_streams.py runs/long-streams
    LAMELLA_DATA=DIR python benchmarks/long_streams.py runs/long-streams --methods inflora,color --epochs 1

For each method: bytes of what was learned, seconds of learning per image, and those of a prediction as a multiple of a
plain forward pass of the same backbone, measured beside it, after each task. Flat where branches are merged; where they
stay, the slope per task is printed. Writes long-streams.json and long-streams.png.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from lamella.config import build_scenario, complete
from lamella.learner import Learner
from lamella.store import learned_state

METHODS = "inflora,duallora,olora,sdlora,color,seq-lora"
UNEQUAL = [12, 1, 3, 7, 2, 9, 1, 5, 4, 8, 2, 6, 3, 10, 1, 4, 7, 2, 8, 5]


def main(
    out: Path,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = METHODS,
    source: str = "cifar100-part",
    epochs: int = 1,
) -> None:
    """Run every method over both streams."""
    streams = {"50 tasks of 2": {"tasks": 50}, "20 unequal tasks": {"sizes": UNEQUAL}}
    rows = {
        stream: {name: _follow(name, source, cut, epochs) for name in methods.split(",")}
        for stream, cut in streams.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "long-streams.json").write_text(json.dumps(rows, indent=1))
    _print(rows)
    _draw(rows["50 tasks of 2"], out / "long-streams.png")


def _follow(name: str, source: str, cut: dict[str, Any], epochs: int) -> list[dict[str, float]]:
    """What each task cost."""
    config = complete({
        "scenario": {"source": source, **cut}, "backbone": {"name": "fractal-vit-micro"},
        "method": {"name": name, "epochs": epochs, "batch_size": 32},
    })  # fmt: skip
    scenario, learner = build_scenario(config), Learner(config)
    plain = Learner(config).backbone
    x = torch.randn(256, 3, 32, 32)
    points: list[dict[str, float]] = []
    for i in range(len(scenario)):
        record = learner.learn(scenario[i])
        state = learned_state(learner.method)
        points.append({
            "bytes": sum(t.numel() * t.element_size() for t in state.values()),
            "seconds_per_image": record["seconds"]["total"] / record["images"],
            "pass": _ratio(lambda: learner.logits(x), lambda: plain(x)),
        })  # fmt: skip
    print(f"{name}: {len(scenario)} tasks, {points[-1]['bytes'] / 1e6:.2f} MB")
    return points


@torch.no_grad()
def _ratio(ours: Callable[[], Any], other: Callable[[], Any], repeats: int = 5) -> float:
    """Median over interleaved pairs of time(ours) / time(other)."""
    ours(), other()
    ratios = []
    for _ in range(repeats):
        times = []
        for run in (ours, other):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def _slope(values: list[float]) -> float:
    """Of the least-squares line over the second half of the stream, per task."""
    late = torch.tensor(values[len(values) // 2 :], dtype=torch.float64)
    at = torch.arange(len(late), dtype=torch.float64)
    return float(((at - at.mean()) * (late - late.mean())).sum() / (at - at.mean()).square().sum())


def _print(rows: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    for stream, methods in rows.items():
        table = Table("method", "KB at the end", "KB a task", "ms an image, first half", "second half",
                      "pass / plain, first task", "last task", title=stream)  # fmt: skip
        for name, points in methods.items():
            half = len(points) // 2
            cost = [1000 * p["seconds_per_image"] for p in points]
            table.add_row(
                name, f"{points[-1]['bytes'] / 1e3:.0f}", f"{_slope([p['bytes'] for p in points]) / 1e3:.1f}",
                f"{statistics.median(cost[:half]):.1f}", f"{statistics.median(cost[half:]):.1f}",
                f"{points[0]['pass']:.2f}", f"{statistics.median(p['pass'] for p in points[-5:]):.2f}",
            )  # fmt: skip
        Console(width=130).print(table)


def _draw(methods: dict[str, list[dict[str, float]]], path: Path) -> None:
    from matplotlib import pyplot as plt

    panels = {"bytes": ("learned state (MB)", 1e-6), "seconds_per_image": ("learning (ms an image)", 1e3),
              "pass": ("prediction / plain forward pass", 1.0)}  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (key, (label, factor)) in zip(axes, panels.items(), strict=True):
        for marker, (name, points) in zip("osD^vPX", methods.items(), strict=False):
            axis.plot(range(1, len(points) + 1), [factor * p[key] for p in points], marker=marker, markersize=3,
                      markevery=5, linewidth=1.2, label=name)  # fmt: skip
        axis.set(xlabel="tasks learned", ylabel=label, ylim=(0, None))
        axis.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    typer.run(main)
