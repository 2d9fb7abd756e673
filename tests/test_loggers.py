"""Loggers: each one's files are read back by its own library, and none of them can stop or change a run."""

import csv
import json
import os
import re
import struct
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import Run
from streams import colours_config

from lamella.experiments.logging import events, loggers
from lamella.experiments.logging.events import Events, LoggerFailed
from lamella.experiments.run import run
from lamella.learner.config.document import RUN, load_config, same_settings

ROOT = Path(__file__).parent.parent
EPOCHS = ["method.name=linear-probe", "method.epochs=2", "method.batch_size=8"]
Told = dict[str, list[tuple[int, float]]]
"""The steps and values of each metric."""


def learned(folder: Path, *names: str) -> Path:
    """Two tasks of two epochs each, told to these loggers."""
    config = load_config(colours_config(folder), [*EPOCHS, f"run.loggers={json.dumps(names)}"])
    return run(config, folder / "run", quiet=True)


def in_csv(out: Path) -> Told:
    told: Told = defaultdict(list)
    with (out / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            told[row["metric"]].append((int(row["step"]), float(row["value"])))
    return dict(told)


def in_tensorboard(out: Path) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(out / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def in_mlflow(out: Path) -> Told:
    from mlflow.tracking import MlflowClient

    client = MlflowClient((out / "mlflow").absolute().as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "lamella"]
    (done,) = client.search_runs([experiment.experiment_id])
    assert done.info.status == "FINISHED"
    assert done.data.params["method.name"] == "linear-probe"
    names = done.data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(done.info.run_id, name)] for name in names}


def in_wandb(out: Path) -> Told:
    from wandb.proto import wandb_internal_pb2

    told: Told = defaultdict(list)
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    for written in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(written)
        row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if f"step/{name}" in row:
                told[name].append((row[f"step/{name}"], value))
    return dict(told)


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: pieces with a header of 7 bytes, in blocks of 32 KiB."""
    at, record = 7, b""  # after the file's own header
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


READ = {"csv": in_csv, "tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


def wanted(out: Path) -> Told:
    """What loggers should have been told, from the run's own files."""
    result = json.loads((out / "results.json").read_text())
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if entry["event"] == "epoch"]
    told: Told = {
        "loss/train": list(enumerate(losses, 1)),
        "accuracy/all": list(enumerate(result["curve"], 1)),
        "accuracy/task-0": [(1, result["matrix"][0][0]), (2, result["matrix"][1][0])],
        "accuracy/task-1": [(2, result["matrix"][1][1])],
        "seconds/learn": list(enumerate(result["seconds"]["learn"], 1)),
    }
    assert len(losses) == 4
    finals = ("final_accuracy", "average_accuracy", "forgetting", "task_aware_accuracy")
    return told | {f"final/{name}": [(2, result[name])] for name in finals}


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_the_files_of_a_logger_are_read_back_by_its_own_library(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "csv":
        pytest.importorskip(name)
    for variable in [key for key in os.environ if key.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(variable)
    out = learned(tmp_path, name)
    told = READ[name](out)
    for metric, points in wanted(out).items():
        assert [step for step, _ in told[metric]] == [step for step, _ in points]
        assert [value for _, value in told[metric]] == pytest.approx([value for _, value in points], rel=1e-6)


def test_every_metric_that_is_told_is_one_of_the_list(tmp_path: Path) -> None:
    patterns = [re.sub("[A-Z]+$", "", name) for name in events.LOGGED]
    told = in_csv(learned(tmp_path, "csv"))
    assert [metric for metric in told if not any(metric.startswith(pattern) for pattern in patterns)] == []


def test_curves_are_live(tmp_path: Path) -> None:
    told = Events(tmp_path, ["csv"], {})
    told.epoch("0", "train", 1, 0.75)
    assert in_csv(tmp_path) == {"loss/train": [(1, 0.75)]}


def test_a_run_that_goes_on_tells_nothing_twice(tmp_path: Path) -> None:
    first = Events(tmp_path, ["csv"], {})
    first.epoch("0", "train", 1, 0.9)
    first.epoch("0", "train", 2, 0.8)
    (tmp_path / "log.jsonl").open("a").write('{"event": "ep')  # cut off by a kill
    again = Events(tmp_path, ["csv"], {})
    again.epoch("0", "train", 2, 0.8)
    again.epoch("0", "train", 3, 0.7)
    again.epoch("1", "train", 1, 0.6)
    again.epoch("1", "refit", 1, 0.5)
    third = Events(tmp_path, ["csv"], {})
    third.epoch("0", "train", 3, 0.7)
    assert in_csv(tmp_path) == {
        "loss/train": [(1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6)],
        "loss/refit": [(1, 0.5)],
    }


def test_loggers_change_nothing_of_a_run_nor_whether_it_can_go_on(tmp_path: Path) -> None:
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
    told = learned(tmp_path / "with", "csv")
    silent = run(load_config(colours_config(tmp_path / "without"), EPOCHS), tmp_path / "without" / "run", quiet=True)
    results = [json.loads((out / "results.json").read_text()) for out in (told, silent)]
    assert results[0]["matrix"] == results[1]["matrix"]
    plain = load_config("digits")
    assert same_settings(plain, load_config("digits", ['run.loggers=["csv"]']))


class Broken:
    def __init__(self, out: Path, settings: Any) -> None:
        self.left = 2

    def log(self, values: Any, step: int) -> None:
        self.left -= 1
        if not self.left:
            raise OSError("the disk is full\nand more")

    def close(self) -> None:
        raise AssertionError("a logger that was left out is not closed")


def test_a_logger_that_fails_is_said_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loggers.LOGGERS, "tensorboard", Broken)
    monkeypatch.setattr(events, "check_installed", lambda names: None)
    with pytest.warns(LoggerFailed) as said:
        out = learned(tmp_path, "tensorboard", "csv")
    (warning,) = said
    assert str(warning.message) == (
        "the logger 'tensorboard' failed and is left out from here on: OSError: the disk is full"
    )
    assert (out / "results.json").is_file()
    assert len(in_csv(out)["loss/train"]) == 4


def test_a_logger_that_does_not_open_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    told = Events(tmp_path / "run", ["csv"], {})
    (tmp_path / "run" / "metrics.csv").mkdir()
    with pytest.warns(LoggerFailed, match="IsADirectoryError"):
        told.log({"accuracy": 1.0}, 1)
    told.log({"accuracy": 1.0}, 2)
    told.close()


def test_the_loggers_are_those_that_may_be_named_each_with_an_extra_and_a_row_in_the_docs() -> None:
    (named,) = get_args(RUN["loggers"].annotation)
    assert get_args(named) == tuple(loggers.LOGGERS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert loggers.LOGGERS.keys() - extras.keys() == {"csv"}
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "loggers.md").read_text(), re.MULTILINE)
    assert rows == list(loggers.LOGGERS)


def test_an_unknown_a_repeated_logger_and_a_missing_package_are_one_line_before_anything_is_computed(
    lamella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = colours_config(tmp_path), tmp_path / "out"
    code, _, err = lamella("run", config, 'run.loggers=["csv", "csv"]', "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "run.loggers = ['csv', 'csv'] names a logger twice; name each once" in err
    code, _, err = lamella("run", config, 'run.loggers=["tensorbord"]', "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "run.loggers" in err
    assert all(name in err for name in loggers.LOGGERS)
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    code, _, err = lamella("run", config, 'run.loggers=["csv", "wandb"]', "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "run.loggers has 'wandb', whose package is missing: pip install 'lamella[wandb]', or take it out" in err
    assert not out.exists(), "so the same folder can be used once it is corrected"
