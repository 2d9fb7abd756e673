"""Draws the costs of each task of a long stream as curves."""

import io
from collections.abc import Mapping, Sequence

from lamella.common.svg import drawing

__all__ = ["PANELS", "growth_png"]

INK, GRID = "#0072b2", "#c9ced3"
PANELS = {
    "seconds_per_image": ("learning (ms an image)", 1e3),
    "peak": ("peak memory (MB)", 1e-6),
    "bytes": ("learned (kB)", 1e-3),
    "pass": ("prediction / plain forward pass", 1.0),
}
"""The label of each value of `follow`, and the factor that converts it to the unit of the label."""


def growth_png(costs: Sequence[Mapping[str, float]]) -> bytes:
    """Draw a panel for each value of `follow` as a PNG file with a white background."""
    with drawing(11, 2.6) as figure:
        for axis, (key, (label, factor)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            axis.plot(range(1, len(costs) + 1), [factor * cost[key] for cost in costs], color=INK, linewidth=1.2)
            axis.set(xlabel="tasks learned", ylabel=label, ylim=(0, 1.15 * factor * max(cost[key] for cost in costs)))
            axis.grid(axis="y", color=GRID)
            axis.spines[:].set_color(GRID)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, facecolor="white")
        return buffer.getvalue()
