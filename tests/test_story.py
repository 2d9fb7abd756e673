"""The story of five days: learn, use, roll back, learn again, export; five processes learn what one process learns."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Run

from lamella.learner.learner import Learner
from lamella.learner.store.versions import load_manifest

SETTINGS = ("method.epochs=1", "method.batch_size=16", "method.rank=4")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parent.parent / "examples" / "five_days.py"
    spec = importlib.util.spec_from_file_location("five_days", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_five_learnings_from_disk_are_the_five_tasks_of_one_learner(
    lamella: Run, tmp_path: Path, example: ModuleType
) -> None:
    model, test = tmp_path / "model", tmp_path / "test"
    example.write_folders(tmp_path, "digits", classes=10, per_class=10)
    for day in example.DAYS:
        code, out, err = lamella("learn", model, tmp_path / day, *(SETTINGS if day == "monday" else ()))
        assert (code, err) == (0, "")
        assert "of 4, all classes competing" in out
    assert example.in_one_process(model, tmp_path) == 0, "five learnings, and one learner's five tasks"

    measured = json.loads(lamella("evaluate", model, test, "--json")[1])
    assert measured["accuracy"] > 0.8, "ten classes, so chance is a tenth; 0.93 when this was written"
    first = json.loads(lamella("predict", model, test, "--json")[1])
    assert lamella("rollback", model)[0] == 0
    assert {row["task"] for row in json.loads(lamella("predict", model, test, "--json")[1])} == set(example.DAYS[:4])
    assert lamella("learn", model, tmp_path / "friday")[0] == 0
    assert load_manifest(model, 6)["state"] == load_manifest(model, 5)["state"], "learned again to the same bits"
    assert json.loads(lamella("predict", model, test, "--json")[1]) == first
    versions = json.loads(lamella("history", model, "--json")[1])
    assert [len(v["tasks"]) for v in versions] == [1, 2, 3, 4, 5, 5]
    assert lamella("export", model, "--format", "adapters", "--out", tmp_path / "exported")[0] == 0


def test_settings_are_those_of_a_new_model(lamella: Run, tmp_path: Path, example: ModuleType) -> None:
    model = tmp_path / "model"
    example.write_folders(tmp_path, "digits", classes=10, per_class=5)
    for wrong, text in (("method.epohcs=2", "did you mean 'epochs'"), ("scenario.tasks=2", "unknown section")):
        code, _, err = lamella("learn", model, tmp_path / "monday", wrong)
        assert (code, err.count("\n"), model.exists()) == (2, 1, False)
        assert text in err
    settings = ("--method", "linear-probe", "method.epochs=3", "method.align=true", "augment.flip=true")
    assert lamella("learn", model, tmp_path / "monday", *settings)[0] == 0
    learner = Learner.load(model)
    assert learner.name == "linear-probe+align"
    assert learner.config["method"]["epochs"] == 3
    assert learner.config["augment"]["flip"] is True
    code, _, err = lamella("learn", model, tmp_path / "tuesday", "method.epochs=4")
    assert (code, err.count("\n")) == (2, 1)
    assert "fixed, and so are their settings: method.epochs is 3, not 4; leave it out" in err
    code, _, err = lamella("learn", model, tmp_path / "tuesday", *settings)
    assert (code, err) == (0, ""), "the same settings are no contradiction"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["inflora+align", "duallora"])
def test_five_processes_are_one(tmp_path: Path, example: ModuleType, method: str) -> None:
    """The example, as it stands: every command in a process of its own."""
    form = "timm" if method == "inflora+align" else "adapters"
    command = [sys.executable, example.__file__, *SETTINGS, "--method", method, "--export", form]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "five processes and one: 0 tensors differ" in done.stdout
    by_day = re.findall(r"^(\w+): ([\d.]+)% of \d+ test images right$", done.stdout, re.MULTILINE)
    assert [day for day, _ in by_day] == list(example.DAYS)
    friday, again = by_day[4][1], re.findall(r"^friday again: ([\d.]+)%", done.stdout, re.MULTILINE)[0]
    assert friday == again
