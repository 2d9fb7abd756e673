"""The report as one self-contained HTML page: no network, light and dark, on a phone as on a desk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamella.common import words
from lamella.common.files import write_atomic
from lamella.common.page import check_file, render
from lamella.experiments.metrics import DEFINITIONS
from lamella.experiments.report.answers import sample_tables, score_tables
from lamella.experiments.report.pair_tables import HEADS, pair_cells, pair_notes, ranks_line
from lamella.experiments.report.paired import pairs
from lamella.experiments.report.ranks import ranks
from lamella.experiments.report.summary import Row, Summary, summarise
from lamella.experiments.report.words import best, seeds, shown, shown_metrics
from lamella.experiments.results_files import Result


def write_html(results: Sequence[Result], path: Path, *, across_splits: bool = False) -> Path:
    """Write the page of `results` to `path`, whole or not at all.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: it cannot be written.
    """
    check_file(path)
    write_atomic(path, render_page(summarise(results, across_splits=across_splits)).encode())
    return path


def render_page(summary: Summary) -> str:
    """The page as text; every name in it is escaped."""
    boards = [_describe(board, f"b{i}") for i, board in enumerate(summary.boards())]
    return render(
        "lamella.experiments.report",
        "report.html.j2",
        boards=boards,
        notes=summary.notes,
        ranks=_ranks(summary),
        definitions=DEFINITIONS,
        words=words,
        seeds=seeds,
    )


def _ranks(summary: Summary) -> dict[str, Any] | None:
    """The critical-difference picture over all boards, and the sentence below it."""
    from markupsafe import Markup

    from lamella.experiments.report.comparison_figures import draw_ranks

    ranked = ranks(summary.boards())
    if ranked is None:
        return None
    return {"picture": Markup(draw_ranks(ranked, "ranks")), "line": ranks_line(ranked)}


def _describe(board: Sequence[Row], name: str) -> dict[str, Any]:
    """What the template shows of one board: facts, table cells, pictures as SVG, costs and origins."""
    from markupsafe import Markup

    from lamella.experiments.report import comparison_figures, figures

    several = board[0].first.tasks > 1
    compared = pairs(board)
    # Markup: matplotlib has escaped the names inside its SVG already.
    pictures = {
        "matrices": [(row, Markup(figures.draw_matrix(row, f"{name}-matrix{i}"))) for i, row in enumerate(board)],
        "confusion": Markup(figures.draw_task_confusion(board, f"{name}-confusion")) if _has_confusion(board) else None,
        "curves": Markup(figures.draw_curves(board, f"{name}-curves")) if several else None,
        "forgetting": Markup(figures.draw_forgetting(board, f"{name}-forgetting"))
        if any(row.metrics["forgetting"] for row in board)
        else None,
        "costs": None if (drawn := comparison_figures.draw_costs(board, f"{name}-costs")) is None else Markup(drawn),
    }
    return {
        "name": name,
        "first": board[0].first,
        "facts": _facts(board),
        "rows": board,
        **_table(board),
        "pair_heads": HEADS,
        "pairs": [pair_cells(pair) for pair in compared],
        "pair_notes": pair_notes(compared),
        **pictures,
        "scores": score_tables(board),
        "samples": sample_tables(board),
        "phases": sorted({phase for row in board for phase in row.first.seconds}, key=_phase_order),
        "origins": [_origin(row) for row in board],
    }


def _has_confusion(board: Sequence[Row]) -> bool:
    several = board[0].first.tasks > 1
    return several and any(row.metrics["task_aware_accuracy"] or row.metrics["task_choice_accuracy"] for row in board)


def _table(board: Sequence[Row]) -> dict[str, Any]:
    metrics = shown_metrics(board)
    leaders = {metric.name: best(board, metric) for metric in metrics}
    cells = [[(shown(row.metrics[m.name], m), i in leaders[m.name], m) for m in metrics] for i, row in enumerate(board)]
    return {"metrics": metrics, "cells": cells}


def _facts(board: Sequence[Row]) -> list[tuple[str, str]]:
    first = board[0].first
    tasks = words.many(first.tasks, "task")
    sizes = first.task_sizes
    classes = f", {words.many(len(first.classes), 'class', 'es')}" if first.classes else ""
    images = f"{sum(sizes):,} ({min(sizes)}" + (f" to {max(sizes)}" if min(sizes) != max(sizes) else "") + " a task)"
    splits = sorted({result.split_sha256[:12] for row in board for result in row.results})
    return [
        ("Scenario", f"{first.kind}, {tasks}{classes}"),
        ("Backbone", first.backbone),
        ("Measured on", f"{first.evaluated_on} {'answers' if first.scores else 'images'}: {images}"),
        ("Task given when predicting", "yes" if first.kind == "task-incremental" else "no"),
        *([("Right is", "a written answer that is a reference exactly")] if first.scores else []),
        ("Split", ", ".join(splits)),
        ("Weights", first.weights_sha256[:12]),
    ]


def _phase_order(phase: str) -> tuple[int, str]:
    """Learning first, evaluating second, all else by name."""
    return ({"learn": 0, "evaluate": 1}.get(phase, 2), phase)


def _origin(row: Row) -> dict[str, Any]:
    """Where the numbers of a row come from: shared by its seeds, so told once."""
    return {
        "row": row,
        "files": [f"{result.path.parent.name}/{result.path.name}" for result in row.results],
        "splits": sorted({result.split_sha256 for result in row.results}),
        "selections": sorted({result.selection for result in row.results if result.selection}),
        "overrides": list(dict.fromkeys(text for result in row.results for text in result.overrides)),
        "versions": sorted({f"{k} {v}" for result in row.results for k, v in result.versions.items()}),
        "config": json.dumps(row.first.config, indent=2, ensure_ascii=False),
    }
