"""Tables over methods and seeds: for the terminal, Markdown, and as fractions in CSV and JSON."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lamella.common.printable import printable
from lamella.common.words import NOTHING, count, duration, many, size
from lamella.experiments.metrics import METRICS
from lamella.experiments.report.pair_tables import pair_records, pairs_text, rank_record
from lamella.experiments.report.summary import Row, Summary, summarise
from lamella.experiments.report.words import best, shown, shown_metrics
from lamella.experiments.results_files import Result

if TYPE_CHECKING:
    from rich.table import Table


def render_table(
    results: Sequence[Result],
    format: str = "table",
    *,
    across_splits: bool = False,
    costs: bool = False,
    paired: bool = False,
) -> str:
    """The table over methods and seeds as text.

    Args:
        results: what `load_results` read.
        format: "table" (for the terminal), "markdown", "csv" or "json".
        across_splits: see `summarise`.
        costs: columns of what each row costs too, in the forms for reading; the others always have them.
        paired: also the paired differences between methods, and their ranks over streams; JSON always has them.

    Raises:
        ValueError: the format is unknown, or has no place for paired differences.
    """
    if format not in FORMATS:
        raise ValueError(f"no table format '{format}'; choose one of {', '.join(FORMATS)}")
    summary = summarise(results, across_splits=across_splits)
    if not paired or format == "json":
        return FORMATS[format](summary, costs)
    if format == "csv":
        raise ValueError("paired differences do not fit into the rows of csv; take --format json, or leave out --pairs")
    return f"{FORMATS[format](summary, costs)}\n{pairs_text(summary, markdown=format == 'markdown')}"


def to_rich(board: Sequence[Row], costs: bool = False) -> "Table":
    """One board (rows that may be compared) as a rich table; the best of each column is bold."""
    from rich.markup import escape
    from rich.table import Table

    metrics = shown_metrics(board)
    leaders = [best(board, metric) for metric in metrics]
    table = Table(title=escape(printable(_title(board[0]))), title_justify="left", caption_justify="left")
    table.caption = f"{_units(board)}, mean ± standard deviation over seeds; * all tasks at once: an upper bound"
    table.add_column("method", overflow="fold")
    table.add_column("seeds", justify="right")
    for metric in metrics:
        table.add_column(metric.label.lower().replace(" ", "\n", 1), justify="right")
    for label, _ in COSTS if costs else ():
        table.add_column(label.replace(" ", "\n", 1), justify="right")
    for i, row in enumerate(board):
        cells = [shown(row.metrics[metric.name], metric) for metric in metrics]
        bold = [f"[bold]{cell}[/]" if i in leading else cell for cell, leading in zip(cells, leaders, strict=True)]
        table.add_row(escape(printable(_name(row))), str(len(row.seeds)), *bold, *(_cost_cells(row) if costs else ()))
    return table


def _units(board: Sequence[Row]) -> str:
    plain = any(not metric.is_share for metric in shown_metrics(board))
    return "percent, losses in nats a token; accuracy: exact match" if plain else "percent"


def to_text(summary: Summary, costs: bool = False) -> str:
    """All boards as plain text, as wide as they need to be."""
    from rich.console import Console

    page = io.StringIO()
    console = Console(file=page, width=200, color_system=None, highlight=False, emoji=False)
    for board in summary.boards():
        console.print(to_rich(board, costs))
    for note in summary.notes:
        console.print(f"note: {printable(note)}", markup=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def to_markdown(summary: Summary, costs: bool = False) -> str:
    """All boards as Markdown tables in percent; the best of each column is bold."""
    parts = [_markdown_board(board, costs) for board in summary.boards()]
    parts += [f"Note: {_escape_markdown(note)}\n" for note in summary.notes]
    return "\n".join(parts)


def _markdown_board(board: Sequence[Row], costs: bool) -> str:
    metrics, labels = shown_metrics(board), [label for label, _ in COSTS] if costs else []
    leaders = [best(board, metric) for metric in metrics]
    lines = [f"**{_escape_markdown(_title(board[0]))}**", ""]
    lines.append("| " + " | ".join(["method", "seeds", *(metric.label.lower() for metric in metrics), *labels]) + " |")
    lines.append("|---|" + "---:|" * (len(metrics) + len(labels) + 1))
    for i, row in enumerate(board):
        cells = [shown(row.metrics[metric.name], metric) for metric in metrics]
        bold = [f"**{cell}**" if i in leading else cell for cell, leading in zip(cells, leaders, strict=True)]
        lines.append(
            "| "
            + " | ".join(
                [_escape_markdown(_name(row)), str(len(row.seeds)), *bold, *(_cost_cells(row) if costs else ())]
            )
            + " |"
        )
    units = _units(board).capitalize()
    lines += ["", f"{units}, mean ± standard deviation over seeds; \\* all tasks at once: an upper bound."]
    return "\n".join(lines) + "\n"


def to_csv(summary: Summary, costs: bool = True) -> str:
    """One line per row; accuracies are fractions, empty where not measured."""
    page = io.StringIO()
    records = _records(summary)
    writer = csv.DictWriter(page, fieldnames=list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return page.getvalue()


def to_json(summary: Summary, costs: bool = True) -> str:
    """Rows and notes; accuracies are fractions, null where not measured."""
    compared = {"pairs": pair_records(summary), "ranks": rank_record(summary)}
    content: dict[str, Any] = {
        "rows": [
            record | {"seeds": list(row.seeds)} for record, row in zip(_records(summary), summary.rows, strict=True)
        ],
        "notes": summary.notes,
    } | compared
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Summary, bool], str]] = {
    "table": to_text,
    "markdown": to_markdown,
    "csv": to_csv,
    "json": to_json,
}


COSTS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("trained parameters", lambda row: count(row.trainable_parameters())),
    ("stored", lambda row: size(row.stored_bytes())),
    ("learning", lambda row: duration(row.seconds("learn"))),
    ("passes", lambda row: NOTHING if (passes := row.passes()) is None else f"{passes:.2f}"),
)
"""What a row costs: numbers trained in one task, bytes of all that was learned, time of all tasks, and what a
prediction computes in passes of the backbone."""


def _cost_cells(row: Row) -> list[str]:
    return [cell(row) for _, cell in COSTS]


def _records(summary: Summary) -> list[dict[str, Any]]:
    """Return every row's record; metrics of answers and of streams only where some row has them."""
    names = [m.name for m in METRICS if not m.of or any(row.metrics[m.name] for row in summary.rows)]
    return [_record(row, names) for row in summary.rows]


def _record(row: Row, metrics: Sequence[str]) -> dict[str, Any]:
    first = row.first
    record: dict[str, Any] = {
        "scenario": first.scenario,
        "kind": first.kind,
        "backbone": first.backbone,
        "method": first.method,
        "variant": row.variant,
        "evaluated_on": first.evaluated_on,
        "seeds": " ".join(map(str, row.seeds)),
    }
    for name in metrics:
        value = row.metrics[name]
        record |= {
            f"{name}_mean": None if value is None else value.mean,
            f"{name}_std": None if value is None else value.deviation,
            f"{name}_n": 0 if value is None else value.n,
        }
    return record | {
        "learn_seconds": row.seconds("learn"),
        "evaluate_seconds": row.seconds("evaluate"),
        "trainable_parameters": row.trainable_parameters(),
        "stored_bytes": row.stored_bytes(),
        "passes": row.passes(),
        "split_sha256": " ".join(sorted({result.split_sha256 for result in row.results})),
        "weights_sha256": first.weights_sha256,
    }


def _title(row: Row) -> str:
    first = row.first
    data = "" if first.evaluated_on == "test" else f", measured on {first.evaluated_on} data"
    tasks = many(first.tasks, "task")
    return f"{first.scenario} ({first.kind}, {tasks}{data}), {first.backbone}, split {first.split_sha256[:8]}"


def _name(row: Row) -> str:
    return f"{row.label} *" if row.at_once else row.label


def _escape_markdown(text: str) -> str:
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return printable(" ".join(text.split()))
