"""A federated run under Flower on this machine, by one call: in its simulation engine, or over a SuperLink.

    simulation     a SuperLink that plays the nodes itself, in actors of Ray
    superlink      a SuperLink and a SuperNode for each client, which talk over the loopback device

Nothing is told to Flower or Ray, nothing is installed while it runs, and all processes end with the call: by its
`finally`, which SIGTERM and SIGHUP reach as Ctrl-C does, or by `keeper.py` where this process is killed.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lamella.common.checks import check_one_of
from lamella.experiments.flower.folder import write_app

__all__ = ["ENGINES", "check_installed", "run_on_flower"]

ENGINES = ("simulation", "superlink")
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Flower and Ray report home otherwise."""
OWN_RAY = {"RAY_ADDRESS": "local"}
"""Ray would join a cluster otherwise, where it finds one."""
USUAL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5", "OMP_NUM_THREADS": "1"}
"""What holds unless the user says otherwise: nodes look for work often, and each computes with one thread."""
MOST_PROCESSES = 4
"""How many processes each of those that are started may come to with its own, beside two for each client: more and more
would fill the machine."""
SECONDS = 300.0
"""How long a SuperLink may take to start."""
PATIENCE = 6.0
"""How long processes may take to end when they are asked to."""
ERROR = re.compile(r"^[\w.]*(?:Error|Exception): .*", re.MULTILINE)
"""The last line of a traceback."""
NEEDS = {"simulation": ("flwr", "ray"), "superlink": ("flwr",)}
EXTRAS = {"simulation": "simulation", "superlink": "federated"}


def check_installed(engine: str) -> None:
    """Make sure that an engine is there.

    Raises:
        ValueError: there is no such engine, or not on this system.
        ModuleNotFoundError: what it needs is not installed.
    """
    check_one_of("engine", engine, ("local", *ENGINES))
    if engine in ENGINES and not hasattr(os, "fork"):
        raise ValueError(f"engine '{engine}' forks processes, which this system cannot; use Linux, macOS or WSL")
    if any(find_spec(name) is None for name in NEEDS.get(engine, ())):
        raise ModuleNotFoundError(
            f"engine '{engine}' needs Flower: pip install 'lamella[{EXTRAS[engine]}]', in an environment of its own"
        )


def run_on_flower(engine: str, config: str, overrides: Sequence[str], out: Path, clients: int) -> None:
    """Run a configuration under Flower, and write an ordinary run directory.

    Args:
        engine: "simulation" or "superlink".
        config: a shipped configuration, or the path of one.
        overrides: changes of it, without spaces.
        out: the run directory, which is new.
        clients: how many clients the configuration has.

    Raises:
        ValueError: an override has a space.
        RuntimeError: the run has failed; the message says why, and where the logs are.
    """
    with _ended_as_by_ctrl_c():
        place, named = Path(tempfile.mkdtemp(prefix="lamella-flower-")), False
        try:
            config = str(Path(config).absolute()) if Path(config).is_file() else config
            write_app(place / "app", config, overrides, out)
            processes = Processes(place)
            try:
                _start(processes, engine, config, " ".join(overrides), clients)
                _wait(processes, out, 2 * clients + MOST_PROCESSES if engine == "superlink" else None)
            finally:
                processes.end()
        except RuntimeError:  # which names the logs there
            named = True
            raise
        finally:
            if not named:
                shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let signals that would end this process at once raise KeyboardInterrupt, so that what it has started ends."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()  # no other may say what a signal does
    changed = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if mine and signal.getsignal(number) == signal.SIG_DFL
    ]  # `nohup` ignores SIGHUP
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


class Processes:
    """Processes by name, each in a session of its own, with its log in a folder.

    Where this process is killed before it has called `end`, they are killed, and the folder is removed.

    Args:
        place: the folder.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.all = place, dict[str, subprocess.Popen[bytes]]()
        words = [sys.executable, "-IS", str(Path(__file__).with_name("keeper.py")), str(place)]
        self.keeper = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)

    def start(self, name: str, *words: str) -> None:
        """Start a process; its first word is a command that belongs to this Python."""
        folder = Path(sys.executable).parent
        path = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"  # Flower starts others by their names
        environ = USUAL | os.environ | QUIET | OWN_RAY | {"FLWR_HOME": str(self.place / "home"), "PATH": path}
        with (self.place / f"{name}.log").open("wb") as log:
            self.all[name] = subprocess.Popen(
                [str(folder / words[0]), *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        self._tell(self.all[name].pid)

    def _tell(self, what: object) -> None:
        assert self.keeper.stdin is not None
        with suppress(BrokenPipeError):
            self.keeper.stdin.write(f"{what}\n".encode())
            self.keeper.stdin.flush()

    def explain(self, name: str) -> str:
        """The first error that a process has told, or else its last line, and where the logs of all are."""
        text = (self.place / f"{name}.log").read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = ERROR.search(text)
        return f"{said[0] if said else lines[-1] if lines else 'it has said nothing'} (logs: {self.place})"

    def count(self, name: str) -> int:
        """How many processes there are in the session of one; 0 where the system does not say."""
        found = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                found += stat.read_text().rpartition(")")[2].split()[3] == str(self.all[name].pid)
        return found

    def end(self) -> None:
        """End all of them, with what they have started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.all.values():
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
            until = time.monotonic() + PATIENCE
            for process in self.all.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, until - time.monotonic()))
        self._tell("done")
        self.keeper.communicate()


def _start(processes: Processes, engine: str, config: str, overrides: str, clients: int) -> None:
    """Start a SuperLink, the nodes, and the run."""
    link, *ports = (_free_port() for _ in range(1 + clients))
    address, place = f"127.0.0.1:{link}", processes.place
    (place / "home").mkdir()
    (place / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "{address}"\ninsecure = true\n'
    )

    apart = ["--insecure", "--isolation", "process"]
    hub = [*apart, "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(link)]
    options: list[str] = []
    if engine == "simulation":
        hub.append("--simulation")
        wanted = f"num-supernodes={clients} client-resources-num-cpus=1 init-args-num-cpus={min(clients, _cores())}"
        options = ["--federation-config", wanted]
    processes.start("superlink", "flower-superlink", *hub)
    _wait_for(link, processes)
    places = [f"0@{address}"]
    for number, port in enumerate(ports if engine == "superlink" else ()):
        node = [*apart, "--superlink", address, "--port", str(port), "--node-config", f"partition-id={number}"]
        processes.start(f"node-{number}", "flower-supernode", *node)
        places.append(f"{number}@127.0.0.1:{port}")
    python = Path(sys.executable).name
    processes.start("apps", python, "-m", "lamella.experiments.flower.warm", config, overrides, *places)
    processes.start("run", "flwr", "run", str(place / "app"), "loop", "--stream", *options)


def _wait(processes: Processes, out: Path, most: int | None) -> None:
    """Wait until the results are there.

    Raises:
        RuntimeError: the run or a process has ended, or a process has more than `most` in its session.
    """
    while True:
        ended = {name: code for name, process in processes.all.items() if (code := process.poll()) is not None}
        if (out / "results.json").exists():
            return
        for name, code in ended.items():
            raise RuntimeError(f"'{name}' has ended with code {code}: {processes.explain(name)}")
        for name in processes.all if most else ():
            if (count := processes.count(name)) > (most or 0):
                raise RuntimeError(f"'{name}' has come to {count} processes: {processes.explain(name)}")
        time.sleep(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait_for(port: int, processes: Processes) -> None:
    """Wait until the SuperLink answers."""
    until = time.monotonic() + SECONDS
    while processes.all["superlink"].poll() is None and time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the SuperLink does not start: {processes.explain('superlink')}")
