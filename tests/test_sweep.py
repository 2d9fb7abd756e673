"""Sweeps: grids and variants are planned whole, run once each, and go on after a kill; the best is of validation."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from streams import colours_config
from test_resume import assert_same, outcome

from lamella.common.locks import exclusive_lock
from lamella.experiments.run import run
from lamella.experiments.sweep import local
from lamella.experiments.sweep.best import best, check_choice
from lamella.experiments.sweep.plan import Sweep, Trial, check_folders, finished, read_sweep, values_of
from lamella.experiments.sweep.sweep import Ended, sweep
from lamella.experiments.sweep.worker import LOG
from lamella.learner.config.document import load_config

VALIDATION = ["scenario.validation=0.4", "run.evaluate_on=validation"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return colours_config(tmp_path)


def here(trials: Sequence[Trial], out: Path, ended: Ended) -> None:
    """An engine: one run after the other in this process."""
    for trial in trials:
        run(dict(trial.config), out / trial.name, resume=True, quiet=True)
        ended(trial, "")


def names(plan: Sweep) -> list[str]:
    return [trial.name for trial in plan.trials()]


def test_lists_of_values_become_all_their_combinations() -> None:
    plan = Sweep("digits", ["method.rank=2,4", "method.name=olora", "fit.precision=bf16,float32"], seeds=2)
    assert names(plan) == [
        f"method.rank={rank},fit.precision={precision}/seed-{seed}"
        for rank in (2, 4)
        for precision in ("bf16", "float32")
        for seed in (0, 1)
    ]
    for trial in plan.trials():
        assert trial.config == load_config("digits", trial.changes)
    assert {trial.config["method"]["name"] for trial in plan.trials()} == {"olora"}


def test_a_run_has_the_name_of_its_seed_alone_where_nothing_else_differs() -> None:
    assert names(Sweep("digits")) == ["seed-0"]
    assert names(Sweep("digits", ["run.seed=7"])) == ["seed-7"]
    assert names(Sweep("digits", ["run.seed=7,3", "method.rank=2"])) == ["seed-7", "seed-3"]


def test_the_last_change_of_a_key_counts() -> None:
    variants = {"a": ["method.rank=8"], "b": ["method.epochs=1"]}
    plan = Sweep("digits", ["method.rank=2,4"], variants, ["method.epochs=5"], seeds=1)
    assert names(plan) == ["a/seed-0", "b/method.rank=2/seed-0", "b/method.rank=4/seed-0"]
    assert [t.config["method"]["rank"] for t in plan.trials()] == [8, 2, 4]
    assert {t.config["method"]["epochs"] for t in plan.trials()} == {5}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=", [""]),
        ("a.b=1", ["1"]),
        ("a.b=1, 2", ["1", "2"]),
        ("a.b=[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ('a.b="x, y",z', ['"x, y"', "z"]),
        ("method.name=dlc(wa)+align,wa", ["dlc(wa)+align", "wa"]),
    ],
)
def test_commas_separate_values_but_not_within_one(text: str, values: list[str]) -> None:
    assert values_of(text)[1] == values


def test_names_that_no_folder_can_have_are_replaced_and_stay_apart() -> None:
    texts = ["scenario.source=a/b,a:b", "scenario.root=" + "x" * 150]
    found = names(Sweep("digits", texts, seeds=1))
    assert len(set(found)) == 2
    assert all(name.count("/") == 1 and ":" not in name and len(name) < 140 for name in found)


def test_a_sweep_file_is_read_with_its_configuration_beside_it(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "my-sweep.toml"
    file.write_text(
        'config = "colours.toml"\nseeds = 2\nchanges = ["fit.precision=float32,bf16"]\n'
        '[variants]\nplain = []\nlda = ["method.name=streaming-lda"]\n'
    )
    plan = read_sweep(file)
    assert plan.config == config
    assert len(plan.trials()) == 8
    assert names(plan.only(["lda"]))[0] == "lda/fit.precision=float32/seed-0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('config = "colours.toml"\nsedes = 3', "did you mean 'seeds'"),
        ('config = "colours.toml"\nseeds = 0', "should be 1 or more"),
        ("seeds = 3", "lacks 'config'"),
        ('config = "colours.toml"\n[variants]\na = "method.rank=3"', "should be a list of changes"),
        ('config = "colours.toml"\n[variants]\n"a/b" = []', "name of a folder"),
        ('config = "colours.toml"\n[variants]\na = ["method.rnak=3"]', "a: unknown key 'method.rnak'"),
        ('config = "other.toml"', "no configuration"),
        ("config = ", "is not a TOML file"),
    ],
)
def test_a_mistake_in_a_sweep_file_is_one_line(
    lamella: Run, config: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    code, _, err = lamella("sweep", tmp_path / "wrong.toml", "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit.precision=float32,bf16,half"], "fit.precision=half: "),
        (["method.name=nearest-mean,nearest-maen"], "method.name=nearest-maen: "),
        (["fit.precision=float32,float32"], "twice"),
        (["fit.precision=float32,,bf16"], "empty value"),
        (["fit.precision"], "is not a change"),
        (['method.name=nearest-mean,"nearest-mean"'], "would be the same run"),
        (["run.seed=1,2", "--seeds", "3"], "both given"),
        ([f"scenario.seed={','.join(map(str, range(101)))}", "--seeds", "100"], "10,100 runs"),
        (["--only", "olora"], "no variant 'olora'; this sweep has none"),
        (["fit.precision=float32,bf16", "--best", "final_accuracy"], "run.evaluate_on=validation"),
        ([*VALIDATION, "--best", "final_acuracy"], "did you mean 'final_accuracy'"),
    ],
)
def test_every_setting_is_checked_before_anything_starts(
    lamella: Run, config: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    code, _, err = lamella("sweep", config, *words, "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_runs_and_starts_none(lamella: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown, err = lamella("sweep", config, "fit.precision=float32,bf16", "--seeds", 2, "--out", out, "--dry-run")
    assert code == 0
    assert shown.splitlines()[0] == str(out / "fit.precision=float32" / "seed-0")
    assert len(shown.splitlines()) == 4
    assert err == "4 runs, 0 of them finished already\n"
    assert not out.exists()


def test_each_run_of_a_sweep_is_what_it_is_alone(config: Path, tmp_path: Path) -> None:
    trials = Sweep(config, ["method.name=nearest-mean,streaming-lda"], seeds=2).trials()
    assert sweep(trials, tmp_path / "out", here) == {}
    run(load_config(config, ["method.name=streaming-lda", "run.seed=1"]), tmp_path / "alone", quiet=True)
    assert_same(outcome(tmp_path / "alone"), outcome(tmp_path / "out" / "method.name=streaming-lda" / "seed-1"))


def test_finished_runs_are_skipped_and_more_are_added(config: Path, tmp_path: Path) -> None:
    ran: list[str] = []

    def ended(trial: Trial, failure: str) -> None:
        ran.append(trial.name)

    sweep(Sweep(config, seeds=1).trials(), tmp_path, here, ended)
    sweep(Sweep(config, seeds=2).trials(), tmp_path, here, ended)
    assert ran == ["seed-0", "seed-1"]


def test_run_directories_of_other_settings_are_refused_before_anything_starts(config: Path, tmp_path: Path) -> None:
    run(load_config(config, ["run.seed=1"]), tmp_path / "out" / "seed-1", quiet=True)
    trials = Sweep(config, ["scenario.seed=5"], seeds=2).trials()
    with pytest.raises(ValueError, match="another configuration"):
        sweep(trials, tmp_path / "out", here)
    assert not (tmp_path / "out" / "seed-0").exists()


def test_a_link_in_place_of_a_run_directory_is_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "fit.precision=bf16").symlink_to(tmp_path / "elsewhere")
    trials = Sweep(config, ["fit.precision=float32,bf16"], seeds=1).trials()
    with pytest.raises(ValueError, match="symbolic link"):
        sweep(trials, tmp_path / "out", here)


def test_two_sweeps_do_not_share_a_folder(config: Path, tmp_path: Path) -> None:
    with exclusive_lock(tmp_path, "busy"), pytest.raises(BlockingIOError, match="another sweep is running"):
        sweep(Sweep(config).trials(), tmp_path, here)


def test_one_precision_is_measured_for_all_runs(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def answer(settings: dict[str, Any], backbone: object) -> dict[str, Any]:
        asked.append(settings)
        return {**settings, "fit": {**settings["fit"], "precision": "bf16", "measured": "as the test says"}}

    monkeypatch.setattr("lamella.experiments.sweep.sweep.choose", answer)
    given: list[Trial] = []
    plan = Sweep(config, ["fit.precision=auto,float32"], seeds=3)
    sweep(plan.trials(), tmp_path, lambda trials, out, ended: given.extend(trials))
    assert len(asked) == 1
    assert [trial.config["fit"]["precision"] for trial in given] == ["bf16"] * 3 + ["float32"] * 3


WORKER = """
import json, os, sys, time
config = json.loads(sys.stdin.readline())
with open(os.environ["NOTES"], "a") as notes: notes.write("start\\n")
time.sleep(0.2)
print(os.environ["OMP_NUM_THREADS"])
with open(os.environ["NOTES"], "a") as notes: notes.write("end\\n")
if config["run"]["seed"] == 1: sys.exit("no luck")
if config["run"]["seed"] == 2: os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_so_many_processes_run_at_a_time_and_failures_are_of_one_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(local, "WORKER", [sys.executable, "-c", WORKER])
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    out = tmp_path / "out"
    failures = sweep(Sweep(config, seeds=6).trials(), out, local.Processes(processes))
    assert failures == {"seed-1": "no luck", "seed-2": "its process was ended by signal 9"}
    running, most = 0, 0
    for line in (tmp_path / "notes").read_text().split():
        running += 1 if line == "start" else -1
        most = max(most, running)
    assert most == processes
    assert (out / "seed-0" / LOG).read_text() == f"{local.threads_of_each(processes)}\n"


def test_processes_share_the_threads_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert [local.threads_of_each(n) for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    with pytest.raises(ValueError, match="1 or more"):
        local.Processes(0)


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others_and_is_told_at_the_end(
    lamella: Run, config: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "my-sweep.toml", tmp_path / "out"
    lost = (tmp_path / "lost.npz").as_posix()
    file.write_text(f'config = "colours.toml"\n[variants]\nlost = [\'scenario.source="{lost}"\']\nthere = []\n')
    code, shown, err = lamella("sweep", file, "--processes", 2, "--retries", 0, "--out", out)
    assert code == 1
    assert "there/seed-0: finished" in shown
    assert "nearest-mean" in shown
    assert "lost/seed-0 failed: FileNotFoundError: " in err.splitlines()[-2]
    assert err.splitlines()[-1] == "lamella: 1 of 2 runs failed; the same command tries them again"
    assert "Traceback" in (out / "lost" / "seed-0" / LOG).read_text()
    (tmp_path / "colours.npz").rename(lost)
    code, shown, err = lamella("sweep", file, "--only", "lost", "--out", out)
    assert code == 0
    assert "1/1 lost/seed-0: finished" in shown


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_sweep_that_is_killed_leaves_no_process_and_goes_on_to_the_same_bits(config: Path, tmp_path: Path) -> None:
    changes = ["method.name=seq-lora", "method.epochs=40", "method.batch_size=8", "fit.checkpoint_seconds=0.0"]
    out, one = tmp_path / "out", tmp_path / "out" / "seed-0"
    command = [sys.executable, "-m", "lamella", "sweep", config, *changes, "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(one.glob("checkpoints/*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_free(one)
    trials = Sweep(config, changes).trials()
    assert not finished(trials[0], out)
    assert sweep(trials, out, here) == {}
    run(load_config(config, changes), tmp_path / "alone", quiet=True)
    assert_same(outcome(tmp_path / "alone"), outcome(one))


def wait_until_free(folder: Path, seconds: float = 10) -> None:
    """Wait until no process holds a run directory."""
    until = time.monotonic() + seconds
    while True:
        try:
            with exclusive_lock(folder, "still held"):
                return
        except BlockingIOError:
            assert time.monotonic() < until, "the worker of a killed sweep is still running"
            time.sleep(0.05)


def test_the_best_setting_is_chosen_on_validation_with_its_test_run(config: Path, tmp_path: Path) -> None:
    plan = Sweep(config, [*VALIDATION, "scenario.tasks=2,4"], seeds=2)
    trials = plan.trials()
    for trial in trials:
        folder, good = tmp_path / trial.name, trial.config["scenario"]["tasks"] == 4
        run(dict(trial.config), folder, quiet=True)
        results = json.loads((folder / "results.json").read_text())
        results |= {"final_accuracy": 0.9 if good else 0.8, "forgetting": 0.3 if good else 0.1}
        (folder / "results.json").write_text(json.dumps(results))
    check_folders(trials, tmp_path)
    assert best(trials, tmp_path, "forgetting").group == "scenario.tasks=2"
    found = best(trials, tmp_path, "final_accuracy")
    assert (found.group, found.settings, found.value.mean, found.value.n) == ("scenario.tasks=4", 2, 0.9, 2)
    assert found.changes == (
        "scenario.tasks=4", "run.evaluate_on=test",
        "run.selection=best final_accuracy of 2 settings on a validation part",
    )  # fmt: skip


def test_no_setting_is_chosen_on_test_images(config: Path) -> None:
    trials = Sweep(config, ["scenario.validation=0.4", "run.evaluate_on=validation,test"]).trials()
    with pytest.raises(ValueError, match="on test images says nothing"):
        check_choice(trials, "final_accuracy")
