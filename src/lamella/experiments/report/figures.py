"""The pictures of a report: accuracy over tasks, accuracy matrices, forgetting, and task confusion."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lamella.common.printable import printable
from lamella.common.svg import CARD, GRID, INK, SERIES, WIDTH, drawing, to_svg
from lamella.common.words import number
from lamella.experiments.report.summary import Row, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX"
LINES = ("-", "--", ":")


def draw_curves(board: Sequence[Row], name: str) -> str:
    """Accuracy on the tasks learned so far, a line per method with a band of one standard deviation over seeds."""
    tasks = board[0].first.tasks
    columns = 1 if max(len(short_name(row)) for row in board) > 24 else 2
    with drawing(WIDTH, 3.1 + 0.17 * -(-len(board) // columns)) as figure:
        axes = figure.add_subplot()
        for i, row in enumerate(board):
            _curve(axes, row, i)
        axes.set(xlabel="tasks learned", ylabel="accuracy on them (%)", ylim=(0, 102), xlim=(0.6, tasks + 0.4))
        axes.set_xticks(_ticks(tasks))
        axes.grid(axis="y")
        figure.legend(loc="outside lower left", ncols=columns, fontsize=9, handlelength=2.4)
        return to_svg(figure, name, f"Accuracy over tasks of {len(board)} methods")


def _curve(axes: "Axes", row: Row, i: int) -> None:
    """The line of the i-th method; all tasks at once has one point, and a level line to compare with."""
    color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
    line = (0, (1, 2)) if row.at_once else LINES[i // len(SERIES) % len(LINES)]
    steps, curve, deviation = np.arange(1, row.first.tasks + 1), 100 * row.curve(), row.curve_deviation()
    if row.at_once:
        axes.axhline(curve[-1], color=color, linestyle=line, linewidth=1.2)
    axes.plot(
        steps, curve, linestyle=line, color=color, marker=marker, markersize=4.5, linewidth=1.6, label=short_name(row)
    )
    if deviation is not None:
        low, high = curve - 100 * deviation, curve + 100 * deviation
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)


def draw_matrix(row: Row, name: str) -> str:
    """The accuracy matrix as a heat map with the numbers in its cells; rows that were not measured are left out."""
    tasks, labels = row.first.tasks, _task_labels(row)
    first = tasks - 1 if row.at_once else 0
    shown = row.matrix()[first:]
    size = min(9.0, 150 / tasks)
    rotation = 45 if max(map(len, labels)) * tasks > 60 else 0
    height = 0.6 + 0.055 * max(map(len, labels)) + len(shown) * min(0.42, 4.2 / tasks)
    with drawing(WIDTH, height) as figure:
        axes = figure.add_subplot()
        edges = np.arange(tasks + 1), np.arange(len(shown) + 1)
        axes.pcolormesh(*edges, shown, cmap="viridis", vmin=0, vmax=1, edgecolors=CARD, linewidth=0.8)
        for i, j in np.argwhere(~np.isnan(shown)):
            color = "white" if shown[i, j] < 0.45 else "black"
            text = f"{100 * shown[i, j]:.0f}"
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=size, color=color)
        axes.set_xticks(np.arange(tasks) + 0.5, labels, rotation=rotation, fontsize=size)
        axes.set_yticks(np.arange(len(shown)) + 0.5, list(map(str, range(first, tasks))), fontsize=size)
        axes.set(xlabel="accuracy (%) on task", ylabel="after task")
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return to_svg(figure, name, f"Accuracy matrix of {printable(row.label)}")


def draw_forgetting(board: Sequence[Row], name: str) -> str:
    """A bar per method; a dash where forgetting is not defined."""
    with drawing(WIDTH, 0.7 + 0.3 * len(board)) as figure:
        axes = figure.add_subplot()
        for i, row in enumerate(board):
            _bar(axes, i, 0.62, row.metrics["forgetting"], SERIES[0])
        _method_axis(axes, board)
        axes.set_xlabel("forgetting (percentage points, lower is better)")
        return to_svg(figure, name, f"Forgetting of {len(board)} methods")


def draw_task_confusion(board: Sequence[Row], name: str) -> str:
    """Two bars per method: right when told the task, and the right task chosen without being told."""
    from matplotlib.patches import Patch

    with drawing(WIDTH, 1.0 + 0.46 * len(board)) as figure:
        axes = figure.add_subplot()
        for i, row in enumerate(board):
            _bar(axes, i - 0.2, 0.36, row.metrics["task_aware_accuracy"], SERIES[0])
            _bar(axes, i + 0.2, 0.36, row.metrics["task_choice_accuracy"], SERIES[1], hatch="////")
        _method_axis(axes, board)
        axes.set(xlabel="% of test images", xlim=(0, 112))
        axes.set_xticks(range(0, 101, 20))
        handles = [Patch(color=SERIES[0]), Patch(facecolor=SERIES[1], hatch="////", edgecolor=INK, linewidth=0)]
        names = ["right class, task given", "right task, nothing given"]
        figure.legend(handles, names, loc="outside lower left", ncols=2, fontsize=9)
        return to_svg(figure, name, f"Task-aware and task-choice accuracy of {len(board)} methods")


def _bar(axes: "Axes", at: float, height: float, value: Spread | None, color: str, hatch: str | None = None) -> None:
    if value is None:
        axes.text(0, at, " —", va="center", fontsize=8.5)
        return
    mean, deviation = 100 * value.mean, 100 * (value.deviation or 0)
    axes.barh(at, mean, height, color=color, hatch=hatch, edgecolor=INK if hatch else "none", linewidth=0)
    if deviation:
        axes.errorbar(mean, at, xerr=deviation, color=INK, linewidth=1, capsize=2)
    left = mean < 0
    label = number(value.mean)
    offset = (-4 if left else 4, 0)
    end = mean + (-deviation if left else deviation)
    axes.annotate(
        label, (end, at), offset, textcoords="offset points", ha="right" if left else "left", va="center", fontsize=8.5
    )


def _method_axis(axes: "Axes", board: Sequence[Row]) -> None:
    axes.set_yticks(range(len(board)), [short_name(row) for row in board])
    axes.set_ylim(len(board) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=GRID, linewidth=1)
    axes.grid(axis="x")
    axes.margins(x=0.12)


def short_name(row: Row) -> str:
    """The label of a row, cut in its middle where it is long: what tells rows apart is at its end."""
    label = printable(row.label)
    label = label if len(label) <= 32 else f"{label[:12]}…{label[-19:]}"
    # matplotlib's legend drops labels that start with an underscore; a zero-width space before it does not show.
    return f"\u200b{label}" if label.startswith("_") else label


def _ticks(tasks: int) -> list[int]:
    step = max(1, -(-tasks // 12))
    return list(range(step, tasks + 1, step))


def _task_labels(row: Row) -> list[str]:
    """Task names where they are short and few, else task numbers."""
    names = list(map(printable, row.first.task_names))
    if len(names) <= 10 and max(map(len, names)) <= 14:
        return names
    return list(map(str, range(len(names))))
