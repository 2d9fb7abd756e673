"""The figures of one model: overlap of tasks, protected directions of layers, confusion matrix, and calibration."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lamella.common.printable import printable
from lamella.common.svg import CARD, SERIES, WIDTH, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lamella.learner.inspection.directions import Overlap, Space
    from lamella.learner.inspection.evaluation import Evaluation

MOST_CELLS = 30
"""The largest number of rows or columns for which cells show numbers and axes show names."""


def draw_overlap(overlap: "Overlap", names: Sequence[str], name: str) -> str:
    """Draw the overlap of all pairs of tasks as a heat map, in percent."""
    values = 100 * np.array(overlap.values)
    labels = [_short(names[task]) for task in overlap.tasks]
    with drawing(WIDTH, _height(len(labels), labels)) as figure:
        axes = figure.add_subplot()
        _heat_map(axes, values, labels, labels, CARD, most=100)
        axes.set(xlabel="task", ylabel="task")
        return to_svg(figure, name, f"Overlap of {len(labels)} tasks")


def draw_spaces(spaces: Sequence["Space"], rank: int | None, name: str) -> str:
    """Draw a bar for each layer: the share of protected directions. A mark shows where `rank` directions are free."""
    with drawing(WIDTH, 0.8 + 0.24 * len(spaces)) as figure:
        axes = figure.add_subplot()
        for i, space in enumerate(spaces):
            share = 100 * space.used / space.width
            axes.barh(i, share, 0.66, color=SERIES[0], linewidth=0)
            axes.text(103, i, f"{space.used} of {space.width}", va="center", fontsize=8)
            if rank is not None:
                limit = 100 * (space.width - rank) / space.width
                axes.plot([limit, limit], [i - 0.4, i + 0.4], color=SERIES[3], linewidth=1.6)
        axes.set_yticks(range(len(spaces)), [_short(space.layer, 28) for space in spaces])
        axes.set(xlabel="protected directions (%)", xlim=(0, 128), ylim=(len(spaces) - 0.5, -0.5))
        axes.set_xticks(range(0, 101, 20))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        return to_svg(figure, name, f"Protected directions of {len(spaces)} layers")


def draw_calibration(evaluation: "Evaluation", name: str) -> str:
    """Draw accuracy over confidence, with a bar for each bin that has images and a line where both are equal."""
    with drawing(WIDTH, 3.4) as figure:
        axes = figure.add_subplot()
        for b in evaluation.bins:
            if b.images:
                middle, width = 50 * (b.low + b.high), 100 * (b.high - b.low)
                axes.bar(middle, 100 * b.accuracy, 0.86 * width, color=SERIES[0], linewidth=0)
                axes.text(middle, 100 * b.accuracy + 1, str(b.images), ha="center", fontsize=7.5)
        axes.plot([0, 100], [0, 100], color=SERIES[1], linewidth=1.4, linestyle="--")
        axes.set(xlabel="confidence (%)", ylabel="right (%)", xlim=(0, 100), ylim=(0, 108))
        axes.set_yticks(range(0, 101, 20))
        axes.grid(axis="y")
        return to_svg(figure, name, "Accuracy over confidence")


def draw_confusion(evaluation: "Evaluation", name: str) -> str:
    """Draw the confusion matrix as SVG."""
    labels = [line.name for line in evaluation.classes]
    with drawing(WIDTH, _confusion_height(evaluation)) as figure:
        _confusion(figure, evaluation, CARD)
        return to_svg(figure, name, f"Confusion matrix of {len(labels)} classes")


def confusion_png(evaluation: "Evaluation") -> bytes:
    """Draw the confusion matrix as a PNG file with 200 dots per inch."""
    page = io.BytesIO()
    with drawing(1.3 * WIDTH, 1.3 * _confusion_height(evaluation)) as figure:
        _confusion(figure, evaluation, "white")
        figure.savefig(page, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return page.getvalue()


def _confusion(figure: "Figure", evaluation: "Evaluation", between: str) -> None:
    """Draw true classes as rows and predicted classes as columns, in percent of each row's images."""
    columns = list(evaluation.columns)
    rows = [line.name for line in evaluation.classes]
    # Without names, every class gets a row, so that correct predictions lie on the diagonal.
    rows = rows if len(columns) <= MOST_CELLS else columns
    row, column = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    counts = np.zeros((len(rows), len(columns)))
    for true, predicted, images in evaluation.confusion:
        counts[row[true], column[predicted]] = images
    axes = figure.add_subplot()
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(1)
    _heat_map(axes, shares, [_short(n) for n in rows], [_short(n) for n in columns], between, most=100)
    axes.set(xlabel="predicted class (% of each true class)", ylabel="class")


def _confusion_height(evaluation: "Evaluation") -> float:
    return _height(len(evaluation.classes), evaluation.columns) if len(evaluation.columns) <= MOST_CELLS else WIDTH


def _heat_map(
    axes: "Axes", values: np.ndarray, rows: Sequence[str], columns: Sequence[str], between: str, *, most: float
) -> None:
    """Draw values 0..most as colours. Up to `MOST_CELLS` columns, show names, and numbers except zeros."""
    if max(values.shape) > MOST_CELLS:
        axes.imshow(values, cmap="viridis", vmin=0, vmax=most, aspect="auto", interpolation="none")
        return
    size = min(9.0, 150 / max(values.shape))
    axes.pcolormesh(
        np.arange(values.shape[1] + 1),
        np.arange(values.shape[0] + 1),
        values,
        cmap="viridis",
        vmin=0,
        vmax=most,
        edgecolors=between,
        linewidth=0.8,
    )
    for i, j in np.argwhere(values >= 0.5):
        color = "white" if values[i, j] < 0.45 * most else "black"
        axes.text(j + 0.5, i + 0.5, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=size, color=color)
    turned = 90 if max(map(len, columns)) * len(columns) > 60 else 0
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=turned, fontsize=size)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=size)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _height(rows: int, columns: Sequence[str]) -> float:
    """Return the height in inches, with space for vertical names below the columns."""
    return 0.9 + 0.07 * max(len(_short(name)) for name in columns) + rows * min(0.42, 5.4 / max(rows, len(columns)))


def _short(name: str, most: int = 24) -> str:
    name = printable(name)
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"
