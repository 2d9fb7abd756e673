"""How metrics are called and written for reading."""

from collections.abc import Sequence

from lamella.common.words import MINUS, NOTHING, number
from lamella.experiments.metrics import METRICS, Metric
from lamella.experiments.report.summary import Row, Spread


def shown_metrics(rows: Sequence[Row]) -> list[Metric]:
    """Metrics worth a column: measured somewhere, and the mean of tasks only where it differs from final accuracy."""
    shown = [metric for metric in METRICS if any(row.metrics[metric.name] for row in rows)]
    same = all(
        percent(row.metrics["final_accuracy"]) == percent(row.metrics["final_accuracy_task_mean"]) for row in rows
    )
    return [metric for metric in shown if not (same and metric.name == "final_accuracy_task_mean")]


def percent(value: Spread | None, *, signed: bool = False) -> str:
    """Mean and spread in percent: "72.2 ± 0.4", "72.2" for one seed, a dash for nothing."""
    if value is None:
        return NOTHING
    mean = number(value.mean, signed=signed)
    return mean if value.deviation is None else f"{mean} ± {number(value.deviation)}"


def shown(value: Spread | None, metric: Metric) -> str:
    """Mean and spread of a metric: in percent where it is a share, else with three decimals."""
    if metric.is_share or value is None:
        return percent(value, signed=metric.signed)
    mean = _plain(value.mean, metric)
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.3f}"


def _plain(value: float, metric: Metric) -> str:
    rounded = round(value, 3) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if metric.signed and rounded else ''}.3f}".replace("-", MINUS)


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
    printed = number if metric.is_share else lambda mean: _plain(mean, metric)
    if len({printed(mean) for mean in means.values()}) < 2:
        return set()
    leader = min(means.values()) if metric.lower_is_better else max(means.values())
    return {i for i, mean in means.items() if printed(mean) == printed(leader)}
