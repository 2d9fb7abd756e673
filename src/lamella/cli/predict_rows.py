"""The rows of `lamella predict`, and how they are written."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.learner.learner import Prediction

__all__ = ["as_csv", "line_of", "row_of"]

SHOWN = 60  # characters of a text in a line


def row_of(named: Mapping[str, str], prediction: "Prediction", unknown: bool) -> dict[str, Any]:
    """Return the row of a sample.

    Args:
        named: what the row begins with: the path of an image, or a text and its place.
        prediction: what the sample looks like.
        unknown: whether the row says that it looks stranger than 19 of 20 known ones.
    """
    pairs = zip(prediction.classes, prediction.confidences, strict=True)
    classes = [{"name": name, "confidence": confidence} for name, confidence in pairs]
    row: dict[str, Any] = {**named, "classes": classes, "task": prediction.task}
    row["familiarity"] = prediction.familiarity
    if unknown and prediction.familiarity is not None:
        from lamella.learner.confidence import UNKNOWN

        row["unknown"] = prediction.familiarity < UNKNOWN
    return row


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as a line for people."""
    named = ", ".join(f"{entry['name']} {entry['confidence']:.1%}" for entry in row["classes"])
    strange = f"unknown (familiarity {row['familiarity']:.1%}); nearest: " if row.get("unknown") else ""
    return f"{row['path'] if 'text' not in row else _short(row['text'])}: {strange}{named} (task: {row['task']})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def as_csv(rows: Sequence[Mapping[str, Any]], noun: str, broken: Sequence[Mapping[str, str]] | None = None) -> str:
    """Return rows as CSV, with a header.

    Args:
        rows: the rows.
        noun: what one sample is called.
        broken: what cannot be read, as further rows with the reason in a last column `error`; None leaves the column
            out.
    """
    page = io.StringIO()
    extra = ["unknown"] if rows and "unknown" in rows[0] else []
    names = ["text", "path"] if noun == "text" else ["path"]
    reason = [] if broken is None else ["error"]
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow([*names, "class", "confidence", "task", "familiarity", *extra, *reason])
    for row in rows:
        best = row["classes"][0]
        own, more = ([row[key] for key in keys] for keys in (names, extra))
        told = [best["name"], best["confidence"], row["task"], row["familiarity"]]
        writer.writerow([*own, *told, *more, *("" for _ in reason)])
    for row in broken or ():
        writer.writerow([row["path"], *[""] * (3 + len(names) + len(extra)), row["error"]])
    return page.getvalue()
