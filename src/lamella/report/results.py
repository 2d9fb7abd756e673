"""Reading the result files of runs: what is missing, broken, foreign or newer is refused by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lamella.files import read_json
from lamella.report import fields
from lamella.report.fields import Seconds

SCHEMA = 1
"""The newest layout of a result file that this version reads."""


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
    """`(tasks, tasks)`, nan where not measured; see `lamella.metrics`."""
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
    evaluated_on: str
    selection: str
    config: Mapping[str, Any]

    @property
    def overrides(self) -> tuple[str, ...]:
        """What the command line changed of the configuration, such as "method.rank=8"; none where it is not told."""
        run = self.config.get("run")
        told = run.get("overrides") if isinstance(run, Mapping) else None
        return tuple(map(str, told)) if isinstance(told, list) else ()

    @property
    def tasks(self) -> int:
        return len(self.task_names)

    @property
    def at_once(self) -> bool:
        """Whether all tasks were learned in one go (an upper bound): nothing was measured before the last one."""
        return self.tasks > 1 and bool(np.isnan(self.matrix[:-1]).all())


METRIC_NAMES = (
    "final_accuracy",
    "final_accuracy_task_mean",
    "average_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "task_aware_accuracy",
    "task_choice_accuracy",
)
SIGNED = frozenset({"forgetting", "backward_transfer", "forward_transfer"})
"""Metrics that are differences of accuracies, -1..1."""


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
            f"no results*.json in '{given}' or below; a run writes it when it ends (go on with a stopped one: --resume)"
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
    except (KeyError, TypeError, ValueError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"'{path}' is a damaged result file: {missing}; run it again") from error


def _parse(path: Path, content: Mapping[str, Any]) -> Result:
    names = tuple(map(str, fields.listed(content, "task_names")))
    if not names:
        raise ValueError("task_names is empty")
    sizes = tuple(fields.count(size, "task_sizes") for size in fields.listed(content, "task_sizes"))
    if len(sizes) != len(names):
        raise ValueError(f"task_sizes has {len(sizes)} entries for {len(names)} tasks")
    metrics = {name: fields.fraction(content.get(name), name, signed=name in SIGNED) for name in METRIC_NAMES}
    return Result(
        path=path,
        method=fields.text(content, "method"),
        scenario=fields.text(content, "scenario"),
        kind=fields.text(content, "kind"),
        backbone=fields.text(content, "backbone"),
        seed=fields.count(content["seed"], "seed"),
        metrics=metrics,
        matrix=fields.matrix(content, "matrix", len(names)),
        curve=fields.row(content["curve"], "curve", len(names)),
        task_names=names,
        task_sizes=sizes,
        classes=tuple(map(str, fields.listed(content, "classes"))),
        split_sha256=fields.text(content, "split_sha256"),
        weights_sha256=fields.text(content, "weights_sha256"),
        versions={str(name): str(version) for name, version in fields.table(content, "versions").items()},
        seconds=fields.seconds(content, "seconds"),
        phase_seconds=fields.seconds(content, "phase_seconds"),
        trainable_parameters=fields.optional_count(content, "trainable_parameters"),
        stored_bytes=fields.optional_count(content, "stored_bytes"),
        evaluated_on=fields.text(content, "evaluated_on"),
        selection=str(content.get("selection") or ""),
        config=fields.table(content, "config"),
    )
