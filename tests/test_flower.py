"""The apps of Flower: real messages in one process, its simulation engine, and two nodes that a SuperLink connects."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from streams import colours_config

from lamella.experiments.flower.loopback import ENGINES
from lamella.experiments.flower.warm import Forks

flower = pytest.importorskip("flwr", reason="the extra 'federated' is not installed")

PLAN = "federated.clients=2 federated.rounds=1 method.name=seq-lora+align method.rank=2 method.blocks=1"


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def in_one_process(config: Path, out: Path, overrides: str = PLAN) -> dict[str, Any]:
    from lamella.experiments.run import run
    from lamella.learner.config.document import load_config

    run(load_config(config, overrides.split()), out, quiet=True)
    return results(out)


def assert_alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["matrix"] == wanted["matrix"]
    for key in ("samples", "exchanges", "bytes_up", "missing"):
        assert found["federated"][key] == wanted["federated"][key]


@pytest.mark.parametrize("node", ["good", "broken", "started again"])
def test_real_messages_give_the_run_of_one_process_and_broken_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    import torch
    from flwr.app import ArrayRecord, Context, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from lamella.experiments.flower.apps import client, server

    for name in ("task_id", "run_id", "node_id"):  # of no run, so that messages can be made
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)

    def context(run: dict[str, Any], node: dict[str, Any]) -> Any:
        return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)

    class Grid:
        """Node 11 of client 1 is lost after the server has begun, and has another number then."""

        asked = 0

        def get_node_ids(self) -> list[int]:
            self.asked += 1
            return [10, 21 if node == "started again" and self.asked > 1 else 11]

        def send_and_receive(self, messages: Sequence[Any], *, timeout: float) -> Iterator[Any]:
            for message in messages:
                assert len(message.content["results"]) == 1, "one array, whatever it holds"
                if message.metadata.dst_node_id not in self.get_node_ids():
                    continue
                number = message.metadata.dst_node_id % 10
                reply = client(message, context({}, {"partition-id": number}))
                if node == "broken" and number == 1:
                    reply.content["answer"] = ArrayRecord({"tensors": torch.zeros(9, dtype=torch.uint8)})
                yield reply

    config = colours_config(tmp_path)
    told = {"config": str(config), "overrides": PLAN, "out": str(tmp_path / "flower"), "timeout": 60.0}
    server(Grid(), context(told, {}))
    if node == "broken":
        assert {entry["client"] for entry in results(tmp_path / "flower")["federated"]["missing"]} == {1}
    else:
        assert_alike(results(tmp_path / "flower"), in_one_process(config, tmp_path / "plain"))


MARK = "LAMELLA_TESTED_IN"
"""A variable of the environment that all processes of a command inherit, whatever their command lines are."""


def lamella(*words: object, folder: Path) -> None:
    """Run the command in a process of its own, which has to be right and to leave no process behind."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", MARK: str(folder)}
    whole = [sys.executable, "-m", "lamella", *map(str, words)]
    seen, since = dict[int, str](), time.monotonic()
    with (folder / "stderr.txt").open("w") as err:
        process = subprocess.Popen(whole, cwd=folder, env=environ, stdout=subprocess.DEVNULL, stderr=err)
    try:
        while process.poll() is None:
            assert time.monotonic() - since < 1200
            seen |= running(folder)
            time.sleep(1)
    finally:
        process.kill()
    assert process.wait() == 0, (folder / "stderr.txt").read_text()[-2000:]
    if "--engine" in words:
        assert any("flower-superlink" in line for line in seen.values()), "otherwise the next line says nothing"
    assert running(folder) == {}


def running(folder: Path) -> dict[int, str]:
    """The command lines of processes that were started for a run in the folder, by number."""
    found: dict[int, str] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={folder}" in (place / "environ").read_text(errors="replace").split("\0"):
                found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_flower_learns_what_one_process_learns(engine: str, tmp_path: Path) -> None:
    """`superlink`: two nodes on loopback; `simulation`: Flower's engine."""
    if engine == "simulation":
        pytest.importorskip("ray", reason="the extra 'simulation' is not installed")
    config, out = colours_config(tmp_path), tmp_path / "flower"
    lamella("federate", config.name, *PLAN.split(), "--engine", engine, "--out", out, folder=tmp_path)
    assert_alike(results(out), in_one_process(config, tmp_path / "plain"))


@pytest.mark.slow
def test_two_nodes_on_loopback_learn_the_whole_of_digits(tmp_path: Path) -> None:
    words = ("digits", "--clients", 2, "--rounds", 3)
    lamella("federate", *words, "--engine", "superlink", "--out", "flower", folder=tmp_path)
    lamella("federate", *words, "--out", "plain", "--quiet", folder=tmp_path)
    assert_alike(results(tmp_path / "flower"), results(tmp_path / "plain"))


class Hub:
    """What a warm process uses of an executor's task."""

    runtime_api_address, token, task_type, parent_pid = "127.0.0.1:1", "a token", "client", 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_warm_process_forks_for_one_app_at_a_time(tmp_path: Path) -> None:
    def command() -> None:
        (tmp_path / "said").write_text(" ".join(sys.argv))
        raise SystemExit(0)

    forks = Forks({"flwr-clientapp": command}, {"client": "flwr-clientapp", "model": "flwr-model"})
    assert forks.get_eligible_capacity({"client", "model"}) == ({"client"}, set())
    before = list(sys.argv)
    assert forks.launch(Hub).status == "accepted"
    assert forks.get_eligible_capacity({"client"}) == (set(), set()), "a second one has to wait"
    since = time.monotonic()
    while forks.child and time.monotonic() - since < 60:
        forks.reconcile()
        time.sleep(0.01)
    assert forks.get_eligible_capacity({"client"}) == ({"client"}, set())
    said = (tmp_path / "said").read_text()
    assert said == "flwr-clientapp --runtime-api-address 127.0.0.1:1 --token a token --insecure --parent-pid 1"
    assert sys.argv == before
