"""The two apps of Flower: real messages in one process, and two nodes on loopback that a SuperLink connects."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from streams import colours_config

flower = pytest.importorskip("flwr", reason="the extra 'federated' is not installed")

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
PLAN = "federated.clients=2 federated.rounds=1 method.name=seq-lora+align method.rank=2 method.blocks=1"
BIN = Path(sys.executable).parent
MOST = 8
"""How many processes of one node there may be before the test gives up: one that hangs must not fill the machine."""


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


def test_real_messages_give_the_run_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.app import Context, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from lamella.experiments.flower.apps import client, server

    for name in ("task_id", "run_id", "node_id"):  # of no run, so that messages can be made
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)

    def context(run: dict[str, Any], node: dict[str, Any]) -> Any:
        return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)

    class Grid:
        def get_node_ids(self) -> list[int]:
            return [10, 11]

        def send_and_receive(self, messages: Sequence[Any], *, timeout: float) -> Iterator[Any]:
            for message in messages:
                yield client(message, context({}, {"partition-id": message.metadata.dst_node_id - 10}))

    config = colours_config(tmp_path)
    told = {"config": str(config), "overrides": PLAN, "out": str(tmp_path / "flower"), "timeout": 60.0}
    server(Grid(), context(told, {}))
    assert_alike(results(tmp_path / "flower"), in_one_process(config, tmp_path / "plain"))


@contextmanager
def process(words: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all its children, which end with the context."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | QUIET | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | environment,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                break
            time.sleep(2)
        child.wait()


def children(of: subprocess.Popen[bytes]) -> int:
    """How many processes there are in the session of one."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            count += stat.read_text().rpartition(")")[2].split()[3] == str(of.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return count


def logs(folder: Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in folder.glob("*.log"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_on_loopback_learn_what_one_process_learns(tmp_path: Path) -> None:
    from lamella.experiments.flower.folder import write_app

    config, out = colours_config(tmp_path), tmp_path / "flower"
    write_app(tmp_path / "app", str(config), PLAN.split(), out, timeout=400.0)
    home = tmp_path / "home"
    home.mkdir()
    link, *ports = (free_port() for _ in range(3))
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    starts = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
    with process(
        [*starts, "--host", "127.0.0.1", "--port", str(link)], tmp_path / "link.log", FLWR_HOME=str(home)
    ) as hub:
        time.sleep(10)
        words = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"]
        first = [*words, "--port", str(ports[0]), "--node-config", "partition-id=0"]
        second = [*words, "--port", str(ports[1]), "--node-config", "partition-id=1"]
        with (
            process(first, tmp_path / "node-0.log", FLWR_HOME=str(home)) as node_0,
            process(second, tmp_path / "node-1.log", FLWR_HOME=str(home)) as node_1,
            process(["flwr", "run", str(tmp_path / "app"), "loop"], tmp_path / "run.log", FLWR_HOME=str(home)),
        ):
            since = time.monotonic()
            while not (out / "results.json").exists():
                assert all(p.poll() is None for p in (hub, node_0, node_1)), logs(tmp_path)
                assert max(children(node_0), children(node_1), children(hub)) <= MOST, "processes pile up"
                assert time.monotonic() - since < 1200, logs(tmp_path)
                time.sleep(1)
    assert_alike(results(out), in_one_process(config, tmp_path / "plain"))
