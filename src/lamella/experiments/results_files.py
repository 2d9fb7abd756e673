"""Reads the result files of runs. Files that are missing, damaged, foreign or too new are refused by name.

The functions at the end check one field each. They raise KeyError if a required field is missing, and ValueError if its
content has the wrong type. `read_result` adds the name of the file to the message.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lamella.common.files import read_json
from lamella.experiments.metrics import METRICS
from lamella.experiments.right import read_right

SCHEMA = 1
"""The layout of result files that this version writes, and the newest that it reads."""

SAMPLES = "samples.jsonl"
"""The file beside the results of a run on answers that has what was written, a line each."""

Seconds: TypeAlias = dict[str, float]
"""Seconds spent per phase, summed over tasks."""


@dataclass(frozen=True)
class Result:
    """One result file: one method, one scenario, one seed. Accuracies are fractions; None where not measured."""

    path: Path
    method: str
    scenario: str
    kind: str
    backbone: str
    seed: int
    metrics: Mapping[str, float | None]
    matrix: npt.NDArray[np.float64]
    """`(tasks, tasks)`, nan where not measured; see `lamella.experiments.metrics`."""
    curve: npt.NDArray[np.float64]
    """`(tasks,)` accuracy on the tasks learned so far, nan where not measured."""
    task_names: tuple[str, ...]
    task_sizes: tuple[int, ...]
    """Test images per task."""
    classes: tuple[str, ...]
    split_sha256: str
    weights_sha256: str
    versions: Mapping[str, str]
    seconds: Seconds
    phase_seconds: Seconds
    trainable_parameters: int | None
    stored_bytes: int | None
    passes: float | None
    evaluated_on: str
    selection: str
    config: Mapping[str, Any]
    scores: Mapping[str, Any]
    """Of answers: "before", "matrix" and "errors" by the name of the score; see `lamella.experiments.results`."""
    probe: Mapping[str, Any]
    """Of answers: the scores of rows of no task before and after; empty where there are none."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """The changes of the configuration on the command line, such as "method.rank=8"; empty if not recorded."""
        run = self.config.get("run")
        told = run.get("overrides") if isinstance(run, Mapping) else None
        return tuple(map(str, told)) if isinstance(told, list) else ()

    def right_images(self) -> npt.NDArray[np.bool_] | None:
        """`(images,)` which test images were right after the last task; None where that is not there, or damaged."""
        right = read_right(self.path.parent, self.method)
        return None if right is None or right.shape != (sum(self.task_sizes),) else right

    @property
    def tasks(self) -> int:
        return len(self.task_names)

    @property
    def at_once(self) -> bool:
        """Whether all tasks were learned in one go (an upper bound): nothing was measured before the last one."""
        matrix = self.score_matrix("loss") if self.scores else self.matrix
        return self.tasks > 1 and bool(np.isnan(matrix[:-1]).all())

    def score_matrix(self, name: str) -> npt.NDArray[np.float64]:
        """`(tasks, tasks)` a score of answers on task j after task i, nan where it was not measured."""
        return np.array(self.scores[name]["matrix"], dtype=np.float64)


def load_results(paths: Iterable[Path | str]) -> list[Result]:
    """Read every `results*.json` at or below `paths`, each file once, in the order of their paths.

    Args:
        paths: run directories, folders of them at any depth, or result files.

    Raises:
        FileNotFoundError: a path is not there, or holds no result file.
        ValueError: a file is broken, not a result file of lamella, or of a newer version.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        for file in _result_files(given):
            found.setdefault(file.resolve(), file)
    if not found:
        raise FileNotFoundError("no run was given; name run directories or folders that hold them")
    return [read_result(found[key]) for key in sorted(found)]


def _result_files(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise FileNotFoundError(f"'{given}' does not exist; name run directories or folders that hold them")
    files = sorted(file for file in given.rglob("results*.json") if file.is_file())
    if not files:
        raise FileNotFoundError(
            f"no results*.json in '{given}' or below; a run writes it at its end (--resume an interrupted one)"
        )
    return files


def read_result(path: Path) -> Result:
    """Read one result file.

    Raises:
        ValueError: it is broken, not a result file of lamella, or of a newer version; the message names it.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"schema", "method", "scenario"} <= content.keys():
        raise ValueError(
            f"'{path}' is not a result file of lamella; move it away or name the run directories one by one"
        )
    schema = content["schema"]
    if type(schema) is not int or schema < 1:
        raise ValueError(f"'{path}' is not a result file of lamella: its schema is {schema!r}, not a number")
    if schema > SCHEMA:
        raise ValueError(
            f"'{path}' was written by a newer lamella (schema {schema}; this one reads up to {SCHEMA}); update lamella"
        )
    try:
        return _parse(path, content)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"'{path}' is a damaged result file: {missing}; run it again") from error


def _parse(path: Path, content: Mapping[str, Any]) -> Result:
    names = tuple(map(str, _listed(content, "task_names")))
    if not names:
        raise ValueError("task_names is empty")
    sizes = tuple(_count(size, "task_sizes") for size in _listed(content, "task_sizes"))
    if len(sizes) != len(names):
        raise ValueError(f"task_sizes has {len(sizes)} entries for {len(names)} tasks")
    metrics = {
        m.name: _fraction(content.get(m.name), m.name, signed=m.difference)
        if m.is_share
        else _optional_number(content, m.name)
        for m in METRICS
    }
    return Result(
        path=path,
        method=_text(content, "method"),
        scenario=_text(content, "scenario"),
        kind=_text(content, "kind"),
        backbone=_text(content, "backbone"),
        seed=_count(content["seed"], "seed"),
        metrics=metrics,
        matrix=_matrix(content, "matrix", len(names)),
        curve=_row(content["curve"], "curve", len(names)),
        task_names=names,
        task_sizes=sizes,
        classes=tuple(map(str, _listed(content, "classes"))),
        split_sha256=_text(content, "split_sha256"),
        weights_sha256=_text(content, "weights_sha256"),
        versions={str(name): str(version) for name, version in _table(content, "versions").items()},
        seconds=_seconds(content, "seconds"),
        phase_seconds=_seconds(content, "phase_seconds"),
        trainable_parameters=_optional_count(content, "trainable_parameters"),
        stored_bytes=_optional_count(content, "stored_bytes"),
        passes=_optional_number(content, "passes"),
        evaluated_on=_text(content, "evaluated_on"),
        selection=str(content.get("selection") or ""),
        config=_table(content, "config"),
        scores=_table(content, "scores"),
        probe=_table(content, "probe"),
    )


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, not a text")
    return value


def _listed(content: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = content[key]
    if not isinstance(value, list):
        raise ValueError(f"{key} is not a list")
    return value


def _table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not a table")
    return value


def _matrix(content: Mapping[str, Any], key: str, tasks: int) -> npt.NDArray[np.float64]:
    """(tasks, tasks) fractions, nan for what was not measured."""
    rows = _listed(content, key)
    if len(rows) != tasks:
        raise ValueError(f"{key} has {len(rows)} rows for {tasks} tasks")
    return np.stack([_row(values, key, tasks) for values in rows])


def _row(values: Any, key: str, tasks: int) -> npt.NDArray[np.float64]:
    """(tasks,) fractions, nan for what was not measured."""
    if not isinstance(values, list) or len(values) != tasks:
        raise ValueError(f"{key} has not one entry per task ({tasks})")
    parsed = [_fraction(value, key) for value in values]
    return np.array([math.nan if value is None else value for value in parsed], dtype=np.float64)


def _fraction(value: Any, key: str, signed: bool = False) -> float | None:
    """A fraction; None for what was not measured (null, or NaN where a writer let it through)."""
    if value is None or _number(value, key) != value:
        return None
    if not (-1 if signed else 0) <= value <= 1:
        raise ValueError(f"{key} is {value:g}, but accuracies are fractions from 0 to 1")
    return float(value)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is {value!r}, not a number")
    return float(value)


def _count(value: Any, key: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} holds {value!r}, not a whole number of 0 or more")
    return value


def _optional_count(content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    return None if value is None else _count(value, key)


def _optional_number(content: Mapping[str, Any], key: str) -> float | None:
    value = content.get(key)
    return None if value is None else _number(value, key)


def _seconds(content: Mapping[str, Any], key: str) -> Seconds:
    return {str(phase): _total(spent, f"{key}.{phase}") for phase, spent in _table(content, key).items()}


def _total(spent: Any, key: str) -> float:
    entries = spent if isinstance(spent, list) else [spent]
    return sum(_number(entry, key) for entry in entries if entry is not None)
