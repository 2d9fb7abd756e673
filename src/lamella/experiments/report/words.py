"""How numbers and metrics are called and written for reading: percent, durations, sizes, and a dash for nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.experiments.report.summary import Row, Spread

NOTHING = "\N{EM DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Metric:
    """A metric as a reader meets it."""

    name: str
    label: str
    lower_is_better: bool = False
    signed: bool = False


METRICS = (
    Metric("final_accuracy", "Final accuracy"),
    Metric("final_accuracy_task_mean", "Final, mean of tasks"),
    Metric("average_accuracy", "Average accuracy"),
    Metric("forgetting", "Forgetting", lower_is_better=True),
    Metric("backward_transfer", "Backward transfer", signed=True),
    Metric("forward_transfer", "Forward transfer", signed=True),
    Metric("task_aware_accuracy", "Task-aware accuracy"),
    Metric("task_choice_accuracy", "Task-choice accuracy"),
)


def shown_metrics(rows: Sequence[Row]) -> list[Metric]:
    """Metrics worth a column: measured somewhere, and the mean of tasks only where it differs from final accuracy."""
    shown = [metric for metric in METRICS if any(row.metrics[metric.name] for row in rows)]
    same = all(
        percent(row.metrics["final_accuracy"]) == percent(row.metrics["final_accuracy_task_mean"]) for row in rows
    )
    return [metric for metric in shown if not (same and metric.name == "final_accuracy_task_mean")]


def number(fraction: float, *, signed: bool = False) -> str:
    """A fraction as percent with one decimal and a real minus sign.

    >>> number(0.7224), number(0.05, signed=True), number(-0.00001)
    ('72.2', '+5.0', '0.0')
    """
    rounded = round(100 * fraction, 1) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.1f}".replace("-", MINUS)


def percent(value: Spread | None, *, signed: bool = False) -> str:
    """Mean and spread in percent: "72.2 ± 0.4", "72.2" for one seed, a dash for nothing."""
    if value is None:
        return NOTHING
    mean = number(value.mean, signed=signed)
    return mean if value.deviation is None else f"{mean} ± {number(value.deviation)}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them.

    >>> duration(4.26), duration(95), duration(7500)
    ('4.3 s', '1 min 35 s', '2 h 5 min')
    """
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(value: float | None) -> str:
    """A number with thousands set apart.

    >>> count(1234567.0)
    '1,234,567'
    """
    return NOTHING if value is None else f"{round(value):,}"


def size(value: float | None) -> str:
    """Bytes with a decimal unit.

    >>> size(512), size(23_400_000)
    ('512 B', '23.4 MB')
    """
    if value is None:
        return NOTHING
    if value < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} GB"


def seeds(row: Row) -> str:
    """How many seeds, or which one where there is one; runs where a seed is there twice with different outcomes."""
    if len(row.seeds) == 1:
        return f"seed {row.first.seed}"
    return f"{len(row.seeds)} {'runs' if len(set(row.seeds)) < len(row.seeds) else 'seeds'}"


def best(rows: Sequence[Row], metric: Metric) -> set[int]:
    """Positions of the rows that lead in a metric, as far as the printed digits tell them apart.

    Upper bounds (all tasks at once) do not compete, and nobody leads where all are equal.
    """
    means = {i: s.mean for i, row in enumerate(rows) if not row.at_once and (s := row.metrics[metric.name])}
    if len({number(mean) for mean in means.values()}) < 2:
        return set()
    leader = min(means.values()) if metric.lower_is_better else max(means.values())
    return {i for i, mean in means.items() if number(mean) == number(leader)}
