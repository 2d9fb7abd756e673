"""Killed at any moment, a run goes on to the same numbers, and no file is unreadable at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import source, stream

from lamella.common.files import read_tensors
from lamella.data.scenario import task_incremental
from lamella.experiments.run import run
from lamella.learner.config.document import load_config
from lamella.learner.store.versions import MANIFEST, load_model
from lamella.training.checkpoints import Checkpoints

SETTINGS = [
    "backbone.weights=random", "scenario.tasks=5", "method.epochs=2", "method.batch_size=128",
    "fit.checkpoint_seconds=0.0", "fit.device=cpu",
]  # fmt: skip
CHILD = """
import json, sys
import torch
torch.set_num_threads(1)
from lamella.learner.config.document import load_config
from lamella.experiments.run import run
from pathlib import Path
import sklearn.datasets, timm.models.vision_transformer  # so that kills hit the run and not its imports
print("ready", flush=True)
run(load_config("digits", json.loads(sys.argv[2])), Path(sys.argv[1]), resume=True, quiet=True)
"""
TIMES = ("seconds", "phase_seconds")


def start(out: Path, settings: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(out), json.dumps(settings)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n", child.communicate()[1]
    return child


def outcome(out: Path) -> dict[str, Any]:
    """Everything that must repeat: results without their times, and every learned tensor."""
    results = {}
    for path in sorted(out.glob("results*.json")):
        content = json.loads(path.read_text())
        results[path.name] = {k: v for k, v in content.items() if k not in TIMES}
    state, _ = load_model(out / "model")
    return {"results": results, "state": state}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first["results"] == second["results"]
    assert first["state"].keys() == second["state"].keys()
    different = [name for name, tensor in first["state"].items() if not torch.equal(tensor, second["state"][name])]
    assert different == []


def assert_readable(out: Path) -> None:
    """What a reader finds after a kill is whole: the model, every checkpoint, every JSON file."""
    if (out / "model" / MANIFEST).exists():
        load_model(out / "model")
    for path in out.rglob("*.safetensors"):
        if not path.name.startswith("."):
            read_tensors(path)
    for path in out.rglob("*.json"):
        json.loads(path.read_text())


def kill_and_resume(out: Path, settings: list[str], kills: int, seed: int, whole_seconds: float) -> int:
    """Run to the end, killing the process `kills` times at random moments; how many kills hit a running process."""
    draw, hits, start_up = random.Random(seed), 0, 1.0
    for _ in range(kills):
        child = start(out, settings)
        time.sleep(draw.uniform(0, 2 * (start_up + whole_seconds / kills)))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            hits += 1
        child.communicate()
        assert_readable(out)
    child = start(out, settings)
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    return hits


def run_whole(out: Path, settings: list[str]) -> float:
    child, started = start(out, settings), time.monotonic()
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
@pytest.mark.parametrize("method", ["inflora", "seq-finetune"])
def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path, method: str) -> None:
    settings = [*SETTINGS, f"method.name={method}"]
    seconds = run_whole(tmp_path / "whole", settings)
    hits = kill_and_resume(tmp_path / "killed", settings, 20, 0, seconds)
    assert hits >= 10
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "killed"))


def quick(*extra: str) -> dict[str, Any]:
    return load_config(
        "digits",
        ["backbone.weights=random", "method.name=nearest-mean", "fit.device=cpu", "scenario.per_class=20", *extra],
    )


def test_a_full_disk_leaves_the_last_state_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(quick(), tmp_path / "whole", quiet=True)
    writes, real = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal writes
        writes += 1
        if writes == 9:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(quick(), tmp_path / "full", quiet=True)
    monkeypatch.setattr(os, "fsync", real)
    assert_readable(tmp_path / "full")
    assert not list((tmp_path / "full").rglob("*.part"))
    run(quick(), tmp_path / "full", resume=True, quiet=True)
    assert_same(outcome(whole), outcome(tmp_path / "full"))


@pytest.mark.parametrize("task", ["0", "1"])
def test_an_interrupted_call_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.setattr("lamella.experiments.run.build_scenario", lambda config: stream(classes=4, tasks=2))
    extra = ("method.name=seq-lora", "method.epochs=1", "method.batch_size=4", "fit.checkpoint_seconds=0.0")
    whole = run(quick(*extra), tmp_path / "whole", quiet=True)
    save, load = Checkpoints.save, Checkpoints.load
    saves, found = 0, []

    def save_and_stop(self: Checkpoints, name: str, *rest: Any) -> None:
        nonlocal saves
        save(self, name, *rest)
        saves += name == task
        if saves == 3:
            raise KeyboardInterrupt

    def watched(self: Checkpoints, name: str, call: str) -> Any:
        loaded = load(self, name, call)
        found.extend([] if loaded is None else [(name, call, loaded[1]["step"])])
        return loaded

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(quick(*extra), tmp_path / "stopped", quiet=True)
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(Checkpoints, "load", watched)
    run(quick(*extra), tmp_path / "stopped", resume=True, quiet=True)
    assert found == [(task, "train", 3)]
    assert_same(outcome(whole), outcome(tmp_path / "stopped"))
    assert not (tmp_path / "stopped" / "checkpoints").exists()


def test_a_finished_run_is_neither_overwritten_nor_run_again(tmp_path: Path) -> None:
    out = run(quick(), tmp_path / "run", quiet=True)
    with pytest.raises(FileExistsError, match="holds a run already; pass --resume"):
        run(quick(), out, quiet=True)
    before = (out / "results.json").stat().st_mtime_ns
    run(quick(), out, resume=True, quiet=True)
    assert (out / "results.json").stat().st_mtime_ns == before


def test_another_configuration_may_not_resume_a_run(tmp_path: Path) -> None:
    out = run(quick(), tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match="another configuration"):
        run(quick("run.seed=1"), out, resume=True, quiet=True)


def test_a_run_from_before_an_option_goes_on_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, stored = tmp_path / "run", tmp_path / "run" / "config.toml"
    with monkeypatch.context() as patch:
        patch.setattr("lamella.experiments.run.build_results", lambda *_, **__: sys.exit("stopped"))
        with pytest.raises(SystemExit):
            run(quick(), out, quiet=True)
    now = stored.read_text()
    stored.write_text(now.replace("compile = false\n", ""))
    assert stored.read_text() != now
    with pytest.raises(ValueError, match="another configuration"):
        run(quick("fit.compile=true"), out, resume=True, quiet=True)
    run(quick(), out, resume=True, quiet=True)
    assert (out / "results.json").exists()


@pytest.mark.parametrize("line", ["[fit]\nwings = 2", "no TOML"])
def test_what_a_run_was_made_with_is_known_or_it_does_not_go_on(tmp_path: Path, line: str) -> None:
    out = run(quick(), tmp_path / "run", quiet=True)
    stored = out / "config.toml"
    stored.write_text(stored.read_text().replace("[fit]", line))
    with pytest.raises(ValueError, match="another configuration"):
        run(quick(), out, resume=True, quiet=True)


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.experiments.run.build_scenario", lambda config: stream(4, 2, per_class=8))
    monkeypatch.setattr("lamella.experiments.run.build_results", lambda *_, **__: sys.exit("stopped"))
    with pytest.raises(SystemExit):
        run(quick(), tmp_path / "run", quiet=True)
    monkeypatch.setattr("lamella.experiments.run.build_scenario", lambda config: stream(4, 2, per_class=9))
    with pytest.raises(ValueError, match=r"images of .* are not those it was started with"):
        run(quick(), tmp_path / "run", resume=True, quiet=True)


def test_the_log_of_a_task_incremental_run_tells_the_accuracy_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.experiments.run.build_scenario", lambda config: task_incremental(source(4), tasks=2))
    out = run(quick("method.name=linear-probe", "method.epochs=1"), tmp_path / "run", quiet=True)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    curve = [entry["accuracy"] for entry in log if entry["event"] == "tested"]
    assert curve == pytest.approx(json.loads((out / "results.json").read_text())["curve"])


def test_what_a_kill_left_half_written_is_swept_up(tmp_path: Path) -> None:
    out = run(quick(), tmp_path / "run", quiet=True)
    torn = out / "model" / ".state-0123456789abcdef.safetensors.0a1b2c3d.part"
    torn.write_bytes(b"half")
    run(quick(), out, resume=True, quiet=True)
    assert not torn.exists()


def test_a_second_process_is_told_that_the_directory_is_taken(tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(BlockingIOError, match="another process is running"):
        run(quick(), tmp_path / "run", quiet=True)


def test_a_refused_run_removes_only_the_empty_folders_that_it_made(tmp_path: Path) -> None:
    refused = quick("method.name=linear-probe")
    refused["fit"]["device"] = "nowhere"
    (tmp_path / "there").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "note.txt").touch()
    for out in ("new/seed-0", "there", "there/seed-0", "others"):
        with pytest.raises(ValueError, match="nowhere"):
            run(refused, tmp_path / out, quiet=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"there", "there/.lock", "others", "others/note.txt", "others/.lock"}


@pytest.mark.parametrize("method", ["inflora", "seq-lora", "joint", "linear-probe", "streaming-lda"])
def test_every_kind_of_method_runs_and_reports(tmp_path: Path, method: str) -> None:
    extra = ["method.epochs=1"] if method != "streaming-lda" else []
    config = load_config(
        "digits",
        [
            "backbone.weights=random",
            f"method.name={method}",
            "method.align=false",
            "fit.device=cpu",
            "scenario.per_class=20",
            *extra,
        ],
    )
    result = json.loads((run(config, tmp_path / "run", quiet=True) / "results.json").read_text())
    assert result["method"] == method
    assert 0 <= result["final_accuracy"] <= result["task_aware_accuracy"] <= 1
    measured = [[v is not None for v in row] for row in result["matrix"]]
    whole = method == "joint"
    assert measured == [[j <= i and (not whole or i == 4) for j in range(5)] for i in range(5)]


def test_a_validation_run_never_touches_the_test_part(tmp_path: Path) -> None:
    config = quick("scenario.validation=0.2", "run.evaluate_on=validation")
    result = json.loads((run(config, tmp_path / "run", quiet=True) / "results.json").read_text())
    assert result["evaluated_on"] == "validation"
    assert result["task_sizes"] == [8] * 5  # a fifth of 20 images of each of two classes


def test_a_start_that_failed_leaves_the_folder_to_the_corrected_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shrinkage 2"):
        run(quick("method.align.shrinkage=2.0"), tmp_path / "run", quiet=True)
    assert (run(quick(), tmp_path / "run", quiet=True) / "results.json").exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_learned(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder '.*file/run' cannot be written \(Not a directory\); choose another"):
        run(quick(), tmp_path / "file" / "run", quiet=True)
