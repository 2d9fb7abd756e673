"""What the page shows of runs on answers: their scores by task, and some of what was written."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamella.common.words import NOTHING, number
from lamella.experiments.report.summary import Row
from lamella.experiments.results_files import SAMPLES, Result
from lamella.learner.answers.scores import SCORES

__all__ = ["sample_tables", "score_tables"]

EACH = 3
"""How many rows of each task are shown of what was written."""
LONGEST = 600
"""Characters of a prompt or an answer that are shown."""


def score_tables(board: Sequence[Row]) -> list[dict[str, Any]]:
    """A table of the scores of each row that has some, by score and task: before anything, when learned, at the end.

    They are of its first seed.
    """
    return [_scores(row) for row in board if row.first.scores]


def sample_tables(board: Sequence[Row]) -> list[dict[str, Any]]:
    """The first lines of each task of what the first seed of each row has written at the end."""
    tables = [{"row": row, "lines": _lines(row.first.path.parent / SAMPLES)} for row in board if row.first.scores]
    return [table for table in tables if table["lines"]]


def _scores(row: Row) -> dict[str, Any]:
    result = row.first
    tasks = [*result.task_names, *(["probe"] if result.probe else [])]
    lines = [(score.label, _cells(result, name)) for name, score in SCORES.items() if name in result.scores]
    return {"row": row, "tasks": tasks, "lines": lines}


def _cells(result: Result, name: str) -> list[str]:
    """The cells of a score: three values a task, of which the second is missing where it was not measured."""
    matrix, before = result.score_matrix(name), result.scores[name]["before"]
    errors: list[float | None] = result.scores[name]["errors"]
    cells = [
        _cell(name, [first, None if result.at_once else float(matrix[j, j]), float(matrix[-1, j])], errors[j])
        for j, first in enumerate(before)
    ]
    if result.probe:
        at = [result.probe[when]["scores"].get(name) for when in ("before", "after")]
        cells.append(_cell(name, at, result.probe["after"]["errors"].get(name)))
    return cells


def _cell(name: str, values: Sequence[float | None], error: float | None) -> str:
    def shown(value: float | None) -> str:
        if value is None or math.isnan(value):
            return NOTHING
        return number(value) if SCORES[name].is_share else f"{value:.3f}"

    return " → ".join(map(shown, values)) + (f" ± {shown(error)}" if error is not None else "")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The first lines of each task in a file of samples; none where it is missing or damaged."""
    counts = Counter[str]()
    found: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                counts[line["task"]] += 1
                if counts[line["task"]] <= EACH:
                    found.append(_line(line))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found


def _line(line: dict[str, Any]) -> dict[str, Any]:
    asked = line.get("prompt") or "\n".join(turn["content"] for turn in line.get("messages", ()))
    right = " | ".join(line["references"])
    said = {key: _short(str(text)) for key, text in (("prompt", asked), ("references", right))}
    written = line.get("written")
    return {"task": line["task"], **said, "written": NOTHING if written is None else _short(written)}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
