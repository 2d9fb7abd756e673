"""Paired differences and ranks as text, and as records for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lamella.common.printable import printable
from lamella.common.words import NOTHING, number
from lamella.experiments.report.paired import Interval, Pair, pairs
from lamella.experiments.report.ranks import Ranks, groups, ranks
from lamella.experiments.report.summary import Row, Summary

__all__ = ["HEADS", "pair_cells", "pair_records", "pair_notes", "pairs_text", "rank_record", "ranks_line"]

HEADS = ("better", "than", "pairs", "difference", "95 % over seeds", "95 % over images", "verdict")


def pair_cells(pair: Pair) -> tuple[str, ...]:
    """The cells of a pair under HEADS, in percentage points."""
    return (
        pair.better.label,
        pair.worse.label,
        str(len(pair.differences)),
        number(pair.mean, signed=True),
        _interval(pair.over_seeds),
        _interval(pair.over_images),
        pair.verdict,
    )


def _interval(ends: Interval | None) -> str:
    return NOTHING if ends is None else f"{number(ends[0], signed=True)} to {number(ends[1], signed=True)}"


def pairs_text(summary: Summary, *, markdown: bool) -> str:
    """The tables of all boards with several methods, and the ranks over them."""
    lines: list[str] = []
    found: list[Pair] = []
    for board in summary.boards():
        found += (compared := pairs(board))
        if rows := [pair_cells(pair) for pair in compared]:
            lines += [f"{_stream(board)}: paired differences of final accuracy, in percentage points", ""]
            lines += [*(_markdown(rows) if markdown else _columns(rows)), ""]
    if not lines:
        return "no two methods here have runs with the same seed and split, so there are no paired differences\n"
    lines.append('"noise": one of the intervals has 0 in it. "one pair": one seed says nothing of seeds.')
    lines += pair_notes(found)
    if (ranked := ranks(summary.boards())) is not None:
        lines += ["", ranks_line(ranked)]
    return "\n".join(lines) + "\n"


def pair_notes(compared: Sequence[Pair]) -> list[str]:
    """Why intervals over images are missing, a sentence for each reason."""
    notes: list[str] = []
    blank = [[*pair.better.results, *pair.worse.results] for pair in compared if pair.over_images is None]
    lacking = [{str(each.path.parent) for each in results if each.right_images() is None} for results in blank]
    if folders := sorted(set().union(*lacking)):
        named = ", ".join(map(printable, folders[:3])) + (f" and {len(folders) - 3} more" if folders[3:] else "")
        notes.append(f"No interval over images, since right.npz is missing or damaged in {named}; a new run writes it.")
    if not all(lacking):
        notes.append("No interval over images, since the pairs of runs have different test images.")
    return notes


def ranks_line(ranked: Ranks) -> str:
    """Mean ranks, the critical difference, and who cannot be told apart, in one sentence or two."""
    means = ", ".join(f"{printable(name)} {mean:.2f}" for name, mean in zip(ranked.methods, ranked.means, strict=True))
    told = f"mean ranks over {ranked.streams} streams: {means}; critical difference {ranked.critical:.2f}"
    friedman = "" if ranked.p is None else f"; Friedman's test: p = {ranked.p:.3f}"
    alike = [printable(" = ".join(ranked.methods[a : b + 1])) for a, b in groups(ranked.means, ranked.critical)]
    return told + friedman + (f"; not told apart: {'; '.join(alike)}" if alike else "")


def pair_records(summary: Summary) -> list[dict[str, Any]]:
    """Every pair with fractions, for JSON."""
    return [
        {
            "scenario": board[0].first.scenario,
            "better": pair.better.label,
            "worse": pair.worse.label,
            "metric": pair.metric,
            "differences": list(pair.differences),
            "mean": pair.mean,
            "over_seeds": pair.over_seeds,
            "over_images": pair.over_images,
            "verdict": pair.verdict,
        }
        for board in summary.boards()
        for pair in pairs(board)
    ]


def rank_record(summary: Summary) -> dict[str, Any] | None:
    """The ranks over streams, for JSON; None where there are none."""
    ranked = ranks(summary.boards())
    return None if ranked is None else asdict(ranked)


def _stream(board: Sequence[Row]) -> str:
    return printable(board[0].first.scenario)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    table = [HEADS, *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(HEADS), "|---|---|---:|---:|---:|---:|---|", *map(line, rows)]
