"""`lamella federate`: an ordinary run folder that says what was sent, and a run that goes on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from streams import colours_config
from test_resume import assert_same, outcome

from lamella.experiments.flower import loopback
from lamella.experiments.run import run
from lamella.federated.fit import FederatedFit
from lamella.learner.config.document import load_config

PLAN = ["--clients", "3", "--rounds", "2", "--lose", "2@2", "--quiet"]
METHOD = ["method.name=seq-lora+align", "method.rank=2", "method.blocks=1", "method.batch_size=8"]
PRIVATE = ["federated.clip=0.5", "federated.noise=1.0"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours_config(tmp_path_factory.mktemp("federate"))


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_a_federated_run_is_an_ordinary_run_and_goes_on_to_the_same_bits(
    lamella: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["federate", config, *METHOD, *PRIVATE, *PLAN]
    code, _, err = lamella(*words, "--out", whole)
    assert (code, err) == (0, "")
    found = results(whole)["federated"]
    assert [sum(samples) for samples in found["samples"]] == [12, 12]
    assert found["exchanges"] == {"train": 4, "align-drift": 1, "align-statistics": 2}
    assert found["missing"] == [{"task": 2, "client": 2, "since": "train", "why": "no answer"}]
    assert (found["releases"], found["delta"]) == (4, 1e-5)
    assert 0 < found["epsilon"] < 30
    trained = results(whole)["trainable_parameters"]
    assert found["bytes_up"]["train"] == (3 + 2) * 2 * (4 * trained + 8)
    assert found["bytes_down"]["train"] == (3 + 2) * 2 * 4 * trained
    assert "seq-lora+align" in lamella("report", whole)[1]

    ask, calls = FederatedFit.ask, 0

    def stopping(self: FederatedFit, name: str, answer: Callable[[int], Any]) -> dict[int, Any]:
        nonlocal calls
        calls += 1
        found = ask(self, name, answer)
        if calls == 5:  # the second round of the second task
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patched:
        patched.setattr(FederatedFit, "ask", stopping)
        code, _, err = lamella(*words, "--out", broken)
    assert code == 130
    assert "--resume" in err
    assert lamella(*words, "--out", broken, "--resume")[0] == 0
    assert_same(outcome(whole), outcome(broken))


def test_what_was_sent_and_what_privacy_there_is_are_printed(lamella: Run, config: Path, tmp_path: Path) -> None:
    words = [word for word in PLAN if word != "--quiet"]
    words += PRIVATE
    code, out, _ = lamella("federate", config, "method.name=nearest-mean", *words, "--out", tmp_path / "run")
    assert code == 0
    assert "epsilon 0.0 at delta 1e-05 over 0 rounds" in out  # nothing is trained, so no noise was added
    assert "MB up" in out
    assert "task 2: client 2 is missing from 'statistics' on: no answer" in out


def test_a_method_that_needs_more_than_sums_is_refused_by_name(lamella: Run, config: Path, tmp_path: Path) -> None:
    code, _, err = lamella("federate", config, "method.name=ranpac", "--out", tmp_path / "run")
    assert code == 2
    assert "method 'ranpac' cannot be learned by clients" in err
    assert "inflora" in err
    assert not (tmp_path / "run").exists()


def test_a_setting_that_needs_more_than_sums_is_refused_by_name(lamella: Run, config: Path, tmp_path: Path) -> None:
    words = ("method.name=inflora+align", "method.align.own_covariance=0.1", "method.align.drift=local")
    code, _, err = lamella("federate", config, *words, "--out", tmp_path / "run")
    assert code == 2
    assert "it can be without drift = 'local', own_covariance = 0.1, for which" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_client_that_is_lost_after_the_last_task_is_refused(lamella: Run, config: Path, tmp_path: Path) -> None:
    code, _, err = lamella("federate", config, "--lose", "2@3", "--out", tmp_path / "run")
    assert (code, err) == (2, "lamella: '2@3' names task 3, but they are 1 to 2\n")
    assert not (tmp_path / "run").exists()


def test_the_table_is_complete_where_it_is_there_and_absent_where_it_is_not() -> None:
    assert "federated" not in load_config("digits")
    table = load_config("digits", ["federated.clients=2"])["federated"]
    assert (table["clients"], table["rounds"], table["rule"]) == (2, 10, "fedavg")
    with pytest.raises(ValueError, match=r"unknown key 'federated\.client'"):
        load_config("digits", ["federated.client=2"])
    with pytest.raises(ValueError, match="at least 1"):
        load_config("digits", ["federated.rounds=0"])


def test_the_folder_of_a_flower_app_holds_what_is_learned(lamella: Run, config: Path, tmp_path: Path) -> None:
    words = ["federate", config, "--clients", "2", "--lose", "1@2", "--lose", "0@3", "--out", tmp_path / "run"]
    code, out, _ = lamella(*words, "--flower-app", tmp_path / "app")
    assert code == 0
    assert "flwr run" in out
    app = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    plan = load_config(app["config"]["config"], app["config"]["overrides"].split())["federated"]
    assert (plan["clients"], plan["lose"]) == (2, ["1@2", "0@3"])
    assert app["config"]["out"] == str(tmp_path / "run")
    code, _, err = lamella(*words, "--flower-app", tmp_path / "app")
    assert code == 2
    assert "is not empty" in err
    code, _, err = lamella(*words, "run.selection=a b", "--flower-app", tmp_path / "other")
    assert code == 2
    assert "has a space" in err


# Flower ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "ray"), "engine 'ray' is unknown; use one of local, simulation, superlink"),
        (("--engine", "simulation"), "engine 'simulation' needs Flower: pip install 'lamella[simulation]'"),
        (("--engine", "superlink"), "engine 'superlink' needs Flower: pip install 'lamella[federated]'"),
    ],
)
def test_an_engine_that_cannot_run_is_refused_in_one_line(
    lamella: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(loopback, "find_spec", lambda name: None)
    code, _, err = lamella("federate", config, *arguments, "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_run_under_flower_begins_anew_in_a_new_folder(
    lamella: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "find_spec", lambda name: name)
    monkeypatch.setattr(loopback, "run_on_flower", lambda *arguments: pytest.fail("it was started"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for words, message in (
        (("--resume",), "engine 'superlink' makes one run, and begins it anew; leave out --resume and --seeds"),
        (("--seeds", "2"), "leave out --resume and --seeds"),
        (("--out", tmp_path / "full"), "is not empty; choose another --out"),
        (("fit.device=cuda",), "engine 'superlink' computes on the CPU only; leave out fit.device=cuda"),
    ):
        code, _, err = lamella("federate", config, "--engine", "superlink", "--out", tmp_path / "out", *words)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_processes_are_watched_and_end_with_all_they_have_started(tmp_path: Path) -> None:
    python = Path(sys.executable).name
    child = "c = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1); print(c.pid, flush=True); c.wait()"
    parent = f"import subprocess, sys; {child}"
    processes = loopback.Processes(tmp_path)
    try:
        processes.start("calm", python, "-c", parent)
        child = wait_for(lambda: (tmp_path / "calm.log").read_text().strip())
        assert processes.count("calm") == 2 or not Path("/proc").exists()
        with pytest.raises(RuntimeError, match=f"'calm' has come to 2 processes: {child}"):
            loopback._wait(processes, tmp_path, 1)
        processes.start("short", python, "-c", "raise OSError('no luck')")
        processes.all["short"].wait()
        with pytest.raises(RuntimeError, match="'short' has ended with code 1: OSError: no luck"):
            loopback._wait(processes, tmp_path, None)
        (tmp_path / "results.json").touch()
        loopback._wait(processes, tmp_path, None)
    finally:
        processes.end()
    assert all(process.poll() is not None for process in processes.all.values())
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


def test_an_app_is_written_by_a_command_that_asks_for_nothing_else(
    lamella: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "find_spec", lambda name: name)
    for words in (["--engine", "superlink"], ["--seeds", "2"], ["--resume"]):
        code, _, err = lamella("federate", config, "--flower-app", tmp_path / "app", *words)
        assert (code, err.count("\n")) == (2, 1)
        assert f"leave out {' '.join(words).removesuffix(' 2')}\n" in err
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize(
    ("ends", "change", "kept"),
    [(None, "run.selection=a b", False), (KeyboardInterrupt(), "", False), (RuntimeError("see the logs"), "", True)],
)
def test_a_temporary_folder_stays_only_where_its_logs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: BaseException | None, change: str, kept: bool
) -> None:
    def stopping(*_: Any) -> None:
        if ends is not None:
            raise ends

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(loopback, "_start", stopping)
    with pytest.raises(type(ends) if ends else ValueError):
        loopback.run_on_flower("superlink", "digits", [change] if change else [], tmp_path / "out", 2)
    assert bool([*tmp_path.iterdir()]) == kept


def test_what_was_sent_and_who_was_lost_under_flower_is_printed_as_after_a_local_run(
    lamella: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(engine: str, config: str, overrides: list[str], out: Path, clients: int) -> None:
        assert (overrides[-1], clients) == ("fit.device=cpu", 3)
        run(load_config(config, overrides), out, quiet=True)

    monkeypatch.setattr(loopback, "find_spec", lambda name: name)
    monkeypatch.setattr(loopback, "run_on_flower", learn)
    words = [word for word in PLAN if word != "--quiet"]
    words = ["federate", config, "method.name=nearest-mean", "--engine", "superlink", *words]
    code, out, _ = lamella(*words, "--out", tmp_path / "run")
    assert code == 0
    assert "MB up" in out
    assert "task 2: client 2 is missing from 'statistics' on: no answer" in out


def test_an_interrupted_run_under_flower_says_what_to_do(
    lamella: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loopback, "find_spec", lambda name: name)
    monkeypatch.setattr(loopback, "run_on_flower", stopped)
    code, _, err = lamella("federate", config, "--engine", "superlink", "--quiet", "--out", tmp_path / "out")
    assert (code, err) == (130, "lamella: interrupted; begin the run anew, with another --out\n")


def there(pid: str) -> bool:
    """Whether a process is there, and is not one that has ended and waits for its parent to notice."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


@pytest.mark.parametrize(
    "name", [pytest.param("SIGTERM", marks=pytest.mark.slow), pytest.param("SIGHUP", marks=pytest.mark.slow), "SIGKILL"]
)
def test_processes_end_however_the_command_ends(tmp_path: Path, name: str) -> None:
    forking = "import os, time; os.fork(); print(os.getpid(), flush=True); time.sleep(600)"
    command = f"""
import signal, sys
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have ignored it, as nohup does
from lamella.experiments.flower import loopback
loopback._start = lambda processes, *_: processes.start("node", Path(sys.executable).name, "-c", {forking!r})
loopback.run_on_flower("superlink", "digits", [], Path("out"), 2)
"""
    environ = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", command], env=environ, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        log = wait_for(lambda: [*tmp_path.glob("lamella-flower-*/node.log")])[0]
        pids = wait_for(lambda: found if len(found := log.read_text().split()) == 2 else None)
        assert all(there(pid) for pid in pids)
    finally:
        process.send_signal(getattr(signal, name))
    assert process.wait(60) != 0
    wait_for(lambda: not any(there(pid) for pid in pids))
    wait_for(lambda: not [*tmp_path.iterdir()])


def wait_for(what: Callable[[], Any]) -> Any:
    since = time.monotonic()
    while not (found := what()):
        assert time.monotonic() - since < 60
        time.sleep(0.02)
    return found
