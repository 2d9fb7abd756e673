"""Fifty tasks of two classes, and twenty unequal ones, without the number of tasks being known.

    LAMELLA_DATA=DIR python benchmarks/long_streams.py runs/long-streams
    LAMELLA_DATA=DIR python benchmarks/long_streams.py runs/long-streams --methods inflora,inflora+align,color
    LAMELLA_DATA=DIR python benchmarks/long_streams.py runs/long-cnn --methods replay,wa,der --backbone resnet32

For each method: bytes of what was learned, seconds of learning per image, and those of a prediction as a multiple of a
plain forward pass of the same backbone, measured beside it, after each task. Flat where branches are merged; where they
stay, the slope per task is printed. Writes long-streams.json after each method, so that a run goes on where it was
stopped, and in the end long-streams.md and long-streams.png.
"""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lamella.common.files import read_json, write_json
from lamella.common.svg import drawing
from lamella.experiments.bench.growth import follow, slope
from lamella.experiments.bench.streams import short_method
from lamella.experiments.report.figures import LINES, MARKERS
from lamella.learner.config.document import build_scenario, complete
from lamella.learner.learner import Learner

NAMES = "inflora,duallora,olora,sdlora,color,ranpac,seq-lora"
LIGHT = ("#0072b2", "#d98200", "#00805d", "#c44e00", "#b0568a", "#2b95cc", "#4a4f55")
UNEQUAL = [12, 1, 3, 7, 2, 9, 1, 5, 4, 8, 2, 6, 3, 10, 1, 4, 7, 2, 8, 5]


def main(
    out: Path,
    methods: Annotated[str, typer.Option(help="Names, separated by commas; with parts as in inflora+align.")] = NAMES,
    source: str = "cifar100-part",
    backbone: str = "fractal-vit-micro",
    epochs: int = 1,
) -> None:
    """Run every method over both streams."""
    streams = {"50 tasks of 2": {"tasks": 50}, "20 unequal tasks": {"sizes": UNEQUAL}}
    setting = {"source": source, "backbone": backbone, "epochs": epochs}
    path, names = out / "long-streams.json", methods.split(",")
    configs = {(stream, name): _config(name, setting, cut) for stream, cut in streams.items() for name in names}
    found = read_json(path) if path.exists() else {"setting": setting, "streams": {stream: {} for stream in streams}}
    if found["setting"] != setting:
        raise typer.BadParameter(f"{path} was measured with {found['setting']}; choose another folder")
    for (stream, name), config in configs.items():
        if name not in found["streams"][stream]:
            found["streams"][stream][name] = _follow(name, config)
            write_json(path, found)
    rows = {stream: {name: found["streams"][stream][name] for name in names} for stream in streams}
    _print(rows)
    (out / "long-streams.md").write_text(_markdown(rows))
    _draw(rows["50 tasks of 2"], out / "long-streams.png")


def _config(name: str, setting: dict[str, Any], cut: dict[str, Any]) -> dict[str, Any]:
    """Default settings, but for what makes it short; a method that trains nothing has no epochs."""
    return complete({
        "scenario": {"source": setting["source"], **cut}, "backbone": {"name": setting["backbone"]},
        "method": short_method(name, batch=32, epochs=setting["epochs"]),
    })  # fmt: skip


def _follow(name: str, config: dict[str, Any]) -> list[dict[str, float]]:
    """What each task cost."""
    scenario = build_scenario(config)
    points = follow(Learner(config), (scenario[i] for i in range(len(scenario))))
    print(f"{name}: {len(scenario)} tasks, {points[-1]['bytes'] / 1e6:.2f} MB")
    return points


COLUMNS = ("method", "KB at the end", "KB a task", "ms an image, first half", "second half",
           "pass / plain, first task", "last tasks")  # fmt: skip


def _row(name: str, points: list[dict[str, float]]) -> list[str]:
    half = len(points) // 2
    cost = [1000 * p["seconds_per_image"] for p in points]
    return [
        name, f"{points[-1]['bytes'] / 1e3:.0f}", f"{slope([p['bytes'] for p in points]) / 1e3:.1f}",
        f"{statistics.median(cost[:half]):.1f}", f"{statistics.median(cost[half:]):.1f}",
        f"{points[0]['pass']:.2f}", f"{statistics.median(p['pass'] for p in points[-5:]):.2f}",
    ]  # fmt: skip


def _print(rows: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    for stream, methods in rows.items():
        table = Table(*COLUMNS, title=stream)
        for name, points in methods.items():
            table.add_row(*_row(name, points))
        Console(width=130).print(table)


def _markdown(rows: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    lines: list[str] = []
    for stream, methods in rows.items():
        lines += [f"**{stream}**", "", f"| {' | '.join(COLUMNS)} |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
        lines += [f"| `{name}` | {' | '.join(_row(name, points)[1:])} |" for name, points in methods.items()] + [""]
    return "\n".join(lines)


def _draw(methods: dict[str, list[dict[str, float]]], path: Path) -> None:
    """In the report's form and its colours on light paper."""
    panels = {"bytes": ("learned state (MB)", 1e-6), "seconds_per_image": ("learning (ms an image)", 1e3),
              "pass": ("prediction / plain forward pass", 1.0)}  # fmt: skip
    with drawing(11, 3.2 + 0.2 * -(-len(methods) // 5)) as figure:
        axes = figure.subplots(1, len(panels))
        for axis, (key, (label, factor)) in zip(axes, panels.items(), strict=True):
            for i, (name, points) in enumerate(methods.items()):
                line, marker = LINES[i // len(LIGHT) % len(LINES)], MARKERS[i % len(MARKERS)]
                values = [factor * p[key] for p in points]
                axis.plot(range(1, len(points) + 1), values, linestyle=line, color=LIGHT[i % len(LIGHT)], marker=marker,
                          markersize=4, markevery=5, linewidth=1.4, label=name)  # fmt: skip
            axis.set(xlabel="tasks learned", ylabel=label, ylim=(0, None))
            axis.grid(axis="y", color="#c9ced3")
            axis.spines[:].set_color("#c9ced3")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=9)
        figure.savefig(path, dpi=150, facecolor="white")


if __name__ == "__main__":
    typer.run(main)
