"""What runs of a cell gave, beside what was reported. It is written as `reproduction.json` beside the runs:

schema, lamella                 version of this layout, of the library
paper, cell, method             of the registry
source, read                    "primary" or "secondary"; where the reported values were read
seeds                           of the runs
changes                         what the command line changed; with any, the setting is not the published one
values                          {"last": {...}, "average": {...}}, in fractions 0..1, as far as they were reported:
    reported, reported_spread   the published mean, and its spread (null where none was given)
    reproduced, deviation       mean over seeds, and sample standard deviation (null for one seed)
    difference                  reproduced - reported
    standard_error              of the difference, from both spreads and numbers of runs; null where one is missing
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lamella.common.files import read_json, write_json
from lamella.common.version import __version__
from lamella.common.words import number
from lamella.experiments.report.summary import Spread, spread
from lamella.experiments.reproduce.registry import RESULT_KEYS, Cell, Reported
from lamella.experiments.results_files import Result

__all__ = ["FILE", "Comparison", "Value", "compare", "comparison_line", "read_comparison", "write_comparison"]

FILE = "reproduction.json"
SCHEMA = 1


@dataclass(frozen=True)
class Value:
    """A reported and a reproduced value, as fractions."""

    reported: float
    reported_spread: float | None
    reproduced: float
    deviation: float | None
    difference: float
    standard_error: float | None


@dataclass(frozen=True)
class Comparison:
    """A cell and what runs of it gave."""

    paper: str
    cell: str
    method: str
    source: str
    read: str
    seeds: tuple[int, ...]
    changes: tuple[str, ...]
    values: Mapping[str, Value]


def compare(cell: Cell, results: Sequence[Result]) -> Comparison:
    """Compare what a cell reports with the results of its runs.

    Args:
        cell: the cell.
        results: a result of the cell's method for each seed, at least one.

    Raises:
        ValueError: none of the results is of the cell's method.
    """
    own = [result for result in results if result.method == cell.method]
    if not own:
        others = ", ".join(sorted({result.method for result in results})) or "nothing"
        raise ValueError(f"{cell.paper} {cell.name} is of the method {cell.method}, but the runs are of {others}")
    values = {}
    for name, reported in cell.reported.items():
        found = spread(result.metrics[RESULT_KEYS[name]] for result in own)
        if found is not None:  # all tasks at once have no accuracy after each task
            values[name] = _value(reported, found, cell.runs)
    changes = dict.fromkeys(change for result in own for change in result.overrides)
    seeds = tuple(result.seed for result in own)
    return Comparison(cell.paper, cell.name, cell.method, cell.source, cell.read, seeds, tuple(changes), values)


def _value(reported: Reported, found: Spread, runs: int | None) -> Value:
    mean, deviation = reported.mean / 100, None if reported.spread is None else reported.spread / 100
    error = None
    if runs and deviation is not None and found.deviation is not None:
        error = math.sqrt(deviation**2 / runs + found.deviation**2 / found.n)
    return Value(mean, deviation, found.mean, found.deviation, found.mean - mean, error)


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write a comparison into the folder of its runs, and return the file."""
    write_json(folder / FILE, {"schema": SCHEMA, "lamella": __version__, **asdict(comparison)})
    return folder / FILE


def read_comparison(folder: Path) -> Comparison | None:
    """Read the comparison in the folder of a cell's runs; None if the cell was never run to its end there.

    Raises:
        ValueError: the file is damaged, or of a newer version.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        if content["schema"] > SCHEMA:
            raise ValueError(f"'{path}' was written by a newer lamella; update lamella")
        fields = {key: value for key, value in content.items() if key not in ("schema", "lamella")}
        values = {name: Value(**value) for name, value in fields.pop("values").items()}
        seeds, changes = tuple(fields.pop("seeds")), tuple(fields.pop("changes"))
        return Comparison(**fields, seeds=seeds, changes=changes, values=values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' is damaged; remove it and run the cell again with --resume") from error


def comparison_line(value: Value) -> str:
    """A value for people, in percent.

    >>> comparison_line(Value(0.757, 0.0014, 0.751, 0.003, -0.006, None))
    'reported 75.70 ± 0.14, reproduced 75.1 ± 0.3, difference −0.6'
    """
    reported = percents(Reported(100 * value.reported, _percent(value.reported_spread)))
    reproduced = number(value.reproduced) + ("" if value.deviation is None else f" ± {number(value.deviation)}")
    error = "" if value.standard_error is None else f" (standard error {number(value.standard_error)})"
    return f"reported {reported}, reproduced {reproduced}, difference {number(value.difference, signed=True)}{error}"


def percents(value: Reported) -> str:
    """A reported value as it was printed, with two decimals.

    >>> percents(Reported(75.65, 0.14)), percents(Reported(77.2, None))
    ('75.65 ± 0.14', '77.20')
    """
    return f"{value.mean:.2f}" + ("" if value.spread is None else f" ± {value.spread:.2f}")


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
