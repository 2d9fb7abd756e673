"""Engines of sweeps: what fails is tried again, and Ray and SLURM finish every trial once, as a run alone does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import Run
from streams import colours_config, stream
from test_resume import assert_same, outcome

from lamella.experiments.run import run
from lamella.experiments.sweep.engines import engine
from lamella.experiments.sweep.plan import Sweep, Trial, finished
from lamella.experiments.sweep.sweep import Ended, sweep
from lamella.experiments.sweep.worker import LOG, carry_out, environment
from lamella.learner.config.document import load_config, to_toml


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # a trial in this process changes it
    return colours_config(tmp_path)


class Unlucky:
    """An engine whose trials fail as often as they are told to; nothing is run."""

    def __init__(self, failures: dict[str, int]) -> None:
        self.failures, self.calls = failures, list[list[str]]()

    def __call__(self, trials: Sequence[Trial], out: Path, ended: Ended) -> None:
        self.calls.append([trial.name for trial in trials])
        for trial in trials:
            left = self.failures.get(trial.name, 0)
            self.failures[trial.name] = left - 1
            ended(trial, "no luck" if left > 0 else "")


def test_what_failed_is_tried_again_after_all_others_and_named_where_it_still_fails(
    config: Path, tmp_path: Path
) -> None:
    unlucky, told, again = Unlucky({"seed-0": 1, "seed-2": 9}), list[tuple[str, str]](), list[str]()
    failures = sweep(
        Sweep(config, seeds=4).trials(), tmp_path / "out", unlucky,
        lambda trial, failure: told.append((trial.name, failure)),
        retries=2, again=lambda trial, failure: again.append(trial.name),
    )  # fmt: skip
    assert unlucky.calls == [["seed-0", "seed-1", "seed-2", "seed-3"], ["seed-0", "seed-2"], ["seed-2"]]
    assert again == ["seed-0", "seed-2", "seed-2"]
    assert told == [("seed-1", ""), ("seed-3", ""), ("seed-0", ""), ("seed-2", "no luck")]
    assert failures == {"seed-2": "no luck"}


def test_a_logger_that_is_not_installed_is_told_before_the_first_run(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Sweep(config, ['run.loggers=["csv", "mlflow"]'], seeds=2).trials()
    unlucky = Unlucky({})
    monkeypatch.setattr("lamella.experiments.logging.loggers.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="'mlflow', whose package is missing"):
        sweep(trials, tmp_path / "out", unlucky)
    assert unlucky.calls == []


def test_a_trial_says_in_one_line_why_it_failed_and_keeps_the_rest(config: Path, tmp_path: Path) -> None:
    wrong = load_config(config, [f"scenario.source={(tmp_path / 'lost.npz').as_posix()}"])
    failure = carry_out(wrong, str(tmp_path / "run"), str(tmp_path), {})
    assert failure.startswith("FileNotFoundError: ")
    assert "\n" not in failure
    assert "Traceback" in (tmp_path / "run" / LOG).read_text()


def test_a_trial_elsewhere_finds_data_and_weights_as_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_DATA", "there")
    monkeypatch.setenv("SECRET", "not told")
    assert environment()["LAMELLA_DATA"] == "there"
    assert "SECRET" not in environment()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "dask"), "engine 'dask' is unknown; use one of local, ray, slurm"),
        (("--address", "auto"), "--address is that of a Ray cluster; engine 'local' has none, so leave it out"),
        (("--resource", "num_gpus=1"), "engine 'local' takes no --resource"),
        (("--engine", "ray", "--resource", "gpus"), "--resource gpus is no KEY=VALUE"),
        (
            ("--engine", "ray", "--resource", "foo=1"),
            "--resource foo=1 is none that engine 'ray' takes; use one of num_cpus",
        ),
        (("--engine", "ray"), "pip install 'lamella[ray]'"),
        (("--engine", "slurm"), "pip install 'lamella[slurm]'"),
    ],
)
def test_an_engine_that_cannot_run_is_refused_in_one_line(
    arguments: Sequence[str], message: str, config: Path, lamella: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    for shown in ((), ("--dry-run",)):
        code, _, err = lamella("sweep", config, *arguments, *shown, "--out", "out")
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    assert not Path("out").exists()


def test_where_no_job_can_be_submitted_this_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="needs the command sbatch"):
        engine("slurm")


@pytest.mark.parametrize("cluster", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_jobs_run_every_trial_and_say_what_failed(config: Path, tmp_path: Path, cluster: str) -> None:
    """`debug` runs a job in this process, `local` in one of its own; both are submitit's."""
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    from lamella.experiments.sweep.on_slurm import SlurmJobs

    lost = f"scenario.source={(tmp_path / 'lost.npz').as_posix()}"
    plan = Sweep(config, variants={"lost": [lost], "there": []})
    jobs = SlurmJobs(resources={"timeout_min": 5}, cluster=cluster, seconds=0.1)
    failures = sweep(plan.trials(), tmp_path / "out", jobs)
    assert list(failures) == ["lost/seed-0"]
    assert failures["lost/seed-0"].startswith("FileNotFoundError")
    run(load_config(config), tmp_path / "alone", quiet=True)
    assert_same(outcome(tmp_path / "alone"), outcome(tmp_path / "out" / "there" / "seed-0"))


@pytest.mark.parametrize(("resource", "message"), [("gpus", "'gpus'"), ("timeout_min", "expected type")])
def test_a_resource_that_is_none_of_submitits_is_told_before_anything_runs(
    resource: str, message: str, config: Path, tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    from lamella.experiments.sweep.on_slurm import SlurmJobs

    jobs = SlurmJobs(resources={resource: "many"}, cluster="debug")
    with pytest.raises(ValueError, match=f"--resource: .*{message}") as error:
        sweep(Sweep(config).trials(), tmp_path / "out", jobs)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").rglob("config.toml"))


# Ray -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_ray_finishes_every_trial_once_also_when_a_worker_is_killed(cluster: str, config: Path, tmp_path: Path) -> None:
    changes = ["method.name=seq-lora", "method.epochs=40", "method.batch_size=8", "fit.checkpoint_seconds=0.0"]
    plan, out = Sweep(config, changes, seeds=6), tmp_path / "out"
    killed: list[int] = []

    def kill_one() -> None:
        while not list(out.glob("seed-*/checkpoints/*")):
            time.sleep(0.05)
        found = subprocess.run(["pgrep", "-f", "ray::carry_out"], capture_output=True, text=True).stdout.split()
        os.kill(int(found[0]), signal.SIGKILL)
        killed.append(int(found[0]))

    killer = threading.Thread(target=kill_one)
    killer.start()
    told: list[str] = []
    failures = sweep(plan.trials(), out, engine("ray", address=cluster), lambda trial, failure: told.append(trial.name))
    killer.join()
    assert (len(killed), failures) == (1, {})
    assert sorted(told) == [f"seed-{i}" for i in range(6)]
    assert all(finished(trial, out) for trial in plan.trials())
    for trial in plan.trials()[:2]:
        run(dict(trial.config), tmp_path / "alone" / trial.name, quiet=True)
        assert_same(outcome(tmp_path / "alone" / trial.name), outcome(out / trial.name))


@pytest.mark.slow
def test_ray_on_this_machine_ends_with_the_sweep_and_says_what_failed(config: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    lost = f"scenario.source={(tmp_path / 'lost.npz').as_posix()}"
    plan = Sweep(config, variants={"lost": [lost], "there": []})
    failures = sweep(plan.trials(), tmp_path / "out", engine("ray", 2))
    assert list(failures) == ["lost/seed-0"]
    assert failures["lost/seed-0"].startswith("FileNotFoundError")
    assert not ray.is_initialized()


# a choice on the first tasks ------------------------------------------------------------------------------------------


def test_settings_are_chosen_on_the_first_tasks_and_the_choice_is_a_configuration(
    config: Path, tmp_path: Path, lamella: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(trials: Sequence[Trial], out: Path, ended: Ended) -> None:
        for trial in trials:
            run(dict(trial.config), out / trial.name, quiet=True)
            ended(trial, "")

    monkeypatch.setattr("lamella.experiments.sweep.engines.Processes", lambda number: here)
    settings = ["scenario.tasks=2,4", "scenario.validation=0.4", "--select-on-first", 1]
    code, shown, _ = lamella("sweep", config, *settings, "--seeds", 2, "--out", "out")
    assert code == 0
    assert "best final_accuracy of 2 settings: " in shown
    results = json.loads(Path("out/scenario.tasks=4/seed-0/results.json").read_text())
    assert (len(results["matrix"]), results["evaluated_on"]) == (1, "validation")
    chosen = load_config("out/chosen.toml")
    assert (chosen["run"]["evaluate_on"], chosen["scenario"].get("first_tasks")) == ("test", None)
    assert chosen["run"]["selection"] == ("best final_accuracy of 2 settings on a validation part of the first 1 tasks")
    assert shown.splitlines()[-1] == f"on test images: lamella run {Path('out/chosen.toml')} --seeds 2 --out out/chosen"
    code, _, err = lamella("sweep", config, "scenario.tasks=2,4", "--select-on-first", 1, "--out", "other")
    assert (code, err.count("\n")) == (2, 1)
    assert "needs a validation part" in err
    code, _, err = lamella("sweep", config, *settings[:-1], 9, "--out", "other", "--dry-run")
    assert (code, err.count("\n")) == (2, 1)
    assert "first_tasks is 9; this stream has 2 tasks, so give 1 to 2" in err


@pytest.mark.slow
def test_a_choice_is_tested_on_all_tasks_where_the_configuration_has_first_tasks(
    config: Path, tmp_path: Path, lamella: Run
) -> None:
    changes = ["scenario.first_tasks=1", "scenario.validation=0.4", "run.evaluate_on=validation"]
    Path("first.toml").write_text(to_toml(load_config(config, changes)))
    code, _, _ = lamella("sweep", "first.toml", "--best", "final_accuracy", "--out", "out")
    assert code == 0
    chosen = load_config("out/chosen.toml")
    assert chosen["scenario"].get("first_tasks") is None
    assert chosen["run"]["selection"].endswith("of the first 1 tasks")


@pytest.mark.parametrize("change", ["scenario.first_tasks=3", "run.evaluate_on=test", "scenario.first_tasks=1,2"])
def test_a_change_against_the_first_tasks_is_refused(config: Path, lamella: Run, change: str) -> None:
    code, out, err = lamella("sweep", config, change, "scenario.validation=0.4", "--select-on-first", 1, "--dry-run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"leave out '{change}'" in err


def test_the_first_tasks_are_those_of_the_whole_stream() -> None:
    whole = stream(classes=6, tasks=3)
    first = whole.first(2)
    assert [task.name for task in (first[0], first[1])] == [whole[0].name, whole[1].name]
    assert (len(first), first.class_order) == (2, whole.class_order[:4])
    assert torch.equal(first.test(1).labels, whole.test(1).labels)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"first_tasks is {wrong}; this stream has 3 tasks"):
            whole.first(wrong)
