"""The pictures of comparisons: accuracy against cost, and mean ranks with the critical difference."""

from collections.abc import Callable, Sequence
from typing import Any

from lamella.common.svg import INK, SERIES, WIDTH, drawing, to_svg
from lamella.experiments.report.figures import MARKERS, short_name
from lamella.experiments.report.ranks import Ranks, groups
from lamella.experiments.report.summary import Row

COSTS: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
    ("seconds of learning", lambda row: row.seconds("learn")),
    ("bytes stored", lambda row: row.stored_bytes()),
    ("numbers trained", lambda row: row.trainable_parameters()),
)


def draw_costs(board: Sequence[Row], name: str) -> str | None:
    """A panel for each cost, with a point for each method; None for one method, or where no cost was recorded.

    Costs are on a logarithmic axis, and one of nothing, such as no number trained, is at its left edge.
    """
    from matplotlib import ticker

    panels = [(label, cost) for label, cost in COSTS if any((cost(row) or 0) > 0 for row in board)]
    shown = [row for row in board if row.metrics["final_accuracy"]]
    if not panels or len(shown) < 2:
        return None
    with drawing(WIDTH, 2.4 + 0.17 * -(-len(shown) // 2)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, cost) in zip(axes, panels, strict=True):
            least = min(value for row in shown if (value := cost(row) or 0) > 0) / 2
            for i, row in enumerate(shown):
                spread, spent = row.metrics["final_accuracy"], cost(row)
                if spread is None or spent is None:
                    continue
                color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
                bar, label = 100 * (spread.deviation or 0), short_name(row) if axis is axes[0] else None
                style: Any = {"color": color, "marker": marker, "markersize": 5.5, "linestyle": "none", "linewidth": 1}
                axis.errorbar(max(spent, least), 100 * spread.mean, yerr=bar, label=label, **style)
            axis.set_xscale("log")
            # The usual labels are formulas, which a page does not have.
            axis.xaxis.set_major_locator(ticker.LogLocator(numticks=4))
            axis.xaxis.set_minor_locator(ticker.NullLocator())
            axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
            axis.margins(x=0.12)
            axis.set_xlabel(title)
            axis.grid(axis="y")
        axes[0].set_ylabel("final accuracy (%)")
        figure.legend(loc="outside lower left", ncols=2, fontsize=9)
        return to_svg(figure, name, f"Final accuracy against cost of {len(shown)} methods")


def draw_ranks(ranks: Ranks, name: str) -> str:
    """Mean ranks on a line, the best on the left; a bar joins methods that cannot be told apart."""
    count = len(ranks.methods)
    joined = groups(ranks.means, ranks.critical)
    with drawing(WIDTH, 1.0 + 0.24 * count + 0.12 * len(joined)) as figure:
        axes = figure.add_subplot()
        top = -0.35 * len(joined)
        for i, (method, mean) in enumerate(zip(ranks.methods, ranks.means, strict=True)):
            axes.plot([mean, mean, count + 0.15], [0, 1 + i - top, 1 + i - top], color=INK, linewidth=0.8)
            axes.text(count + 0.2, 1 + i - top, f"{mean:.2f}  {method}", va="center", fontsize=8.5)
        for i, (first, last) in enumerate(joined):
            ends = [ranks.means[first] - 0.03, ranks.means[last] + 0.03]
            axes.plot(ends, [0.35 * (i + 1)] * 2, color=SERIES[0], linewidth=3.5)
        axes.plot([1, 1 + ranks.critical], [-1.1, -1.1], color=SERIES[1], linewidth=2)
        axes.text(1, -1.25, f"critical difference {ranks.critical:.2f}", fontsize=8.5, va="bottom")
        axes.set(xlim=(0.9, max(count + 0.2, 1.1 + ranks.critical)), ylim=(count + 0.8 - top, -1.9))
        axes.set_xticks(range(1, count + 1))
        axes.xaxis.set_ticks_position("top")
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        axes.axhline(0, color=INK, linewidth=0.8, xmax=(count - 0.9) / max(count - 0.7, 0.2 + ranks.critical))
        return to_svg(figure, name, f"Mean ranks of {count} methods over {ranks.streams} streams")
