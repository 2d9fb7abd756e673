"""Results of several seeds become one row; what was not made alike is never averaged."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lamella.experiments.metrics import METRICS
from lamella.experiments.results_files import Result

NOT_A_SETTING = frozenset(
    {"seed", "root", "weights", "device", "compile", "recompute", "checkpoint_seconds"}
    | {"selection", "dropped", "overrides", "measured", "loggers"}
)
"""Keys of a config that say where, why, from what file, or with which seed; all others make runs different.

What is in the file of weights is compared by its hash."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1 in the denominator) over n seeds; no deviation for one seed."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """The results of one method under one protocol, over seeds."""

    results: tuple[Result, ...]
    variant: str = ""
    """What tells this row from others of the same method, such as "rank=16"; empty where nothing needs telling."""
    metrics: Mapping[str, Spread | None] = field(init=False)

    def __post_init__(self) -> None:
        spreads = {m.name: spread(result.metrics[m.name] for result in self.results) for m in METRICS}
        object.__setattr__(self, "metrics", spreads)

    @property
    def first(self) -> Result:
        """Stands for what all results of the row share."""
        return self.results[0]

    @property
    def label(self) -> str:
        return f"{self.first.method} ({self.variant})" if self.variant else self.first.method

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(result.seed for result in self.results)

    @property
    def at_once(self) -> bool:
        return all(result.at_once for result in self.results)

    def matrix(self) -> npt.NDArray[np.float64]:
        """`(tasks, tasks)` mean over seeds; nan where a seed has not measured it."""
        return np.mean([result.matrix for result in self.results], axis=0)

    def curve(self) -> npt.NDArray[np.float64]:
        """`(tasks,)` mean over seeds of the accuracy on the tasks learned so far."""
        return np.mean([result.curve for result in self.results], axis=0)

    def curve_deviation(self) -> npt.NDArray[np.float64] | None:
        """`(tasks,)` sample standard deviation of the curve; None for one seed."""
        if len(self.results) == 1:
            return None
        return np.std([result.curve for result in self.results], axis=0, ddof=1)

    def seconds(self, phase: str) -> float | None:
        """Mean over seeds of the seconds spent in a phase; None where a seed has not recorded it."""
        return _mean(result.seconds.get(phase) for result in self.results)

    def phase_seconds(self) -> dict[str, float]:
        """Mean over seeds of the seconds spent in each phase of learning, where every seed has recorded it."""
        means = {phase: _mean(r.phase_seconds.get(phase) for r in self.results) for phase in self.first.phase_seconds}
        return {phase: mean for phase, mean in means.items() if mean is not None}

    def trainable_parameters(self) -> float | None:
        return _mean(result.trainable_parameters for result in self.results)

    def stored_bytes(self) -> float | None:
        return _mean(result.stored_bytes for result in self.results)

    def passes(self) -> float | None:
        """Mean over seeds of what a prediction computes, in passes of the backbone; None where it was not recorded."""
        return _mean(result.passes for result in self.results)


@dataclass(frozen=True)
class Summary:
    """Rows, best first within a board (the runs that may be compared), and what a reader must know about them."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    across_splits: bool = False

    def boards(self) -> list[list[Row]]:
        """Rows that may be compared with each other: same scenario, split, backbone, weights, and kind of test data."""
        boards: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in self.rows:
            boards[_board(row.first, self.across_splits)].append(row)
        return list(boards.values())


def summarise(results: Sequence[Result], *, across_splits: bool = False) -> Summary:
    """Group results over seeds and give mean and spread of each metric.

    Results are pooled only where scenario, split, backbone and its weights, method with all its settings, and the kind
    of test data agree, so that the spread is the spread over seeds and nothing else.

    Args:
        results: at least one.
        across_splits: pool different splits too, for protocols that draw the class order from the seed.
    """
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        groups[(*_board(result, across_splits), result.method, _settings_key(result))].append(result)
    members = [_without_copies(group) for group in groups.values()]
    rows = [Row(tuple(group), _variant(group[0], [other[0] for other in members])) for group in members]
    order = sorted(rows, key=lambda row: (_board(row.first, across_splits), row.at_once, -_final(row), row.label))
    copies = len(results) - sum(map(len, members))
    notes = [f"{copies} of the result files are copies of others here and were left out."] if copies else []
    return Summary(tuple(order), (*notes, *_notes(order, across_splits)), across_splits)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and sample standard deviation of what was measured; None where nothing was.

    >>> spread([0.25, 0.5, 0.75, None])
    Spread(mean=0.5, deviation=0.25, n=3)
    """
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    deviation = statistics.stdev(measured) if len(measured) > 1 else None
    return Spread(statistics.fmean(measured), deviation, len(measured))


def _without_copies(group: Sequence[Result]) -> list[Result]:
    """By seed, and a seed that is there again with equal accuracies once: it says nothing about the spread."""
    once = {(result.seed, result.split_sha256, result.matrix.tobytes()): result for result in group}
    return sorted(once.values(), key=lambda result: result.seed)


def _board(result: Result, across_splits: bool) -> tuple[str, ...]:
    split = "" if across_splits else result.split_sha256
    origin = (result.backbone, result.weights_sha256, f"{result.tasks} tasks", split)
    return (result.scenario, result.kind, result.evaluated_on, *origin)


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as flat dotted names without the keys that make no difference to what was computed.

    >>> settings({"seed": 1, "method": {"rank": 8, "align": {"head": "lda"}}})
    {'method.rank': 8, 'method.align.head': 'lda'}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in NOT_A_SETTING:
            continue
        if isinstance(value, Mapping):
            flat |= settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _settings_key(result: Result) -> str:
    return json.dumps(settings(result.config), sort_keys=True, default=str)


def _variant(result: Result, others: Sequence[Result]) -> str:
    """The settings in which `result` differs from other rows of its method in its scenario, on the same network.

    Another network is on another board, whose title names it.
    """
    rivals = [other for other in others if _kin(other) == _kin(result)]
    own = settings(result.config)
    names = {name for rival in rivals for name in own.keys() ^ settings(rival.config).keys()}
    names |= {name for rival in rivals for name, value in settings(rival.config).items() if own.get(name) != value}
    told = [f"{name.removeprefix('method.')}={own.get(name, 'unset')}" for name in sorted(names)]
    return ", ".join(told if len(told) <= 4 else [*told[:3], f"{len(told) - 3} more"])


def _kin(result: Result) -> tuple[str, ...]:
    return (result.method, result.scenario, result.backbone, result.weights_sha256)


def _final(row: Row) -> float:
    final = row.metrics["final_accuracy"]
    return -1.0 if final is None else final.mean


def _mean(values: Iterable[float | None]) -> float | None:
    collected = list(values)
    measured = [value for value in collected if value is not None]
    return statistics.fmean(measured) if measured and len(measured) == len(collected) else None


def _notes(rows: Sequence[Row], across_splits: bool) -> list[str]:
    notes: list[str] = []
    for scenario in sorted({row.first.scenario for row in rows}):
        inside = [row for row in rows if row.first.scenario == scenario]
        splits = {result.split_sha256 for row in inside for result in row.results}
        if len(splits) > 1:
            how = "averaged together, as asked" if across_splits else "kept apart, not averaged"
            listed = ", ".join(sorted(split[:8] for split in splits))
            notes.append(f"{scenario}: the runs use {len(splits)} different splits ({listed}); they are {how}.")
        if len({row.first.evaluated_on for row in inside}) > 1:
            notes.append(f"{scenario}: some numbers are from test data and some from validation data; kept apart.")
        if len({(row.first.backbone, row.first.weights_sha256) for row in inside}) > 1:
            notes.append(f"{scenario}: the runs start from different backbones or weights; kept apart.")
    for row in rows:
        repeated = sorted({seed for seed in row.seeds if row.seeds.count(seed) > 1})
        if repeated:
            listed = ", ".join(map(str, repeated))
            notes.append(
                f"{row.first.scenario}, {row.label}: seed {listed} is there with different outcomes; each counts."
            )
    return notes
