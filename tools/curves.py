"""Draw the accuracy of finished runs over their tasks as one PNG: the picture of the README.

lamella demo
python tools/curves.py lamella-demo docs/figures/curves.png
"""

import sys
from pathlib import Path

import matplotlib

from lamella.experiments.report import Row, load_results, summarise

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

GRID, INK = "#d9d9d9", "#333333"
SERIES = ("#0072b2", "#d98200", "#00805d", "#c44e00", "#b0568a", "#2b95cc", "#4a4f55")
"""The colours of the reports on white paper, chosen for colour blindness."""


def draw(folder: Path, png: Path) -> None:
    """Read every result under a folder and draw its first board: the runs that may be compared with each other."""
    rows = summarise(load_results([folder])).boards()[0]
    figure, axes = plt.subplots(figsize=(7.6, 3.4), layout="constrained")
    for row, color in zip(rows, SERIES, strict=False):
        _line(axes, row, color)
    ends = _apart([100 * float(row.curve()[-1]) for row in rows], 6.5)
    for row, color, height in zip(rows, SERIES, ends, strict=False):
        axes.annotate(_label(row), (rows[0].first.tasks + 0.12, height), color=color, va="center", fontsize=10)
    tasks = rows[0].first.tasks
    axes.set(xlim=(0.8, tasks + 1.9), ylim=(0, 104), xlabel="tasks learned", ylabel="accuracy on all of them (%)")
    axes.set_xticks(range(1, tasks + 1))
    axes.grid(axis="y", color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.set_axisbelow(True)
    figure.savefig(png, dpi=160, facecolor="white", metadata={"Software": None})


def _line(axes: Axes, row: Row, color: str) -> None:
    """A method's curve; a model that learned all tasks at once is a dotted level line to compare with."""
    curve = 100 * row.curve()
    steps = range(1, len(curve) + 1)
    if row.at_once:
        axes.hlines(curve[-1], 1, len(curve), color=color, linestyle=":", linewidth=1.6)
    else:
        axes.plot(steps, curve, color=color, marker="o", markersize=5, linewidth=2)


def _label(row: Row) -> str:
    return f"{row.label}  {100 * row.curve()[-1]:.1f}" + (" (all at once)" if row.at_once else "")


def _apart(heights: list[float], gap: float) -> list[float]:
    """The heights, moved so that labels do not overlap: each at least a gap below the next higher one."""
    moved = dict.fromkeys(range(len(heights)), 0.0)
    above = 101 + gap
    for i in sorted(moved, key=lambda i: -heights[i]):
        moved[i] = above = min(heights[i] + gap / 3, above - gap)
    return [moved[i] for i in range(len(heights))]


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
