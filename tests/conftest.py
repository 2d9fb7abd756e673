"""Every test runs on one thread: results repeat, and two workers do not fight for the cores."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy read it; processes that tests start read it too
# Where Python is told to keep no bytecode, each of the many processes that tests start would compile the package anew:
# it is allowed here to these processes, and below to this one.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
import torch

from lamella.cli import main

sys.path.insert(0, str(Path(__file__).parent))
sys.dont_write_bytecode = False
torch.set_num_threads(1)
os.fsync = lambda _: None  # no test cuts the power, and each of thousands of files would wait for the disk

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets and weights, where $LAMELLA_DATA names one."""
    root = os.environ.get("LAMELLA_DATA")
    if not root:
        pytest.skip("LAMELLA_DATA is not set: real data and weights are not at hand")
    return Path(root)


@pytest.fixture(autouse=True)
def _starts_with_the_bundled_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """New models start with what is bundled, because the weights of other backbones may not be at hand."""
    monkeypatch.setattr("lamella.learner.config.new_config.PHOTOS", "small-images")
    monkeypatch.setattr("lamella.learner.config.new_config.TEXTS", "requests")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned dark and bright images, told apart without training; not to be changed."""
    from colours import taught_model

    return taught_model(tmp_path_factory.mktemp("taught"))


@pytest.fixture
def model(taught: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(taught, tmp_path / "model"))


@pytest.fixture
def lamella(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lamella", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code if isinstance(left.value.code, int) else 0, out, err

    return call


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of this machine with three places, whose processes end with the test."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # newer ones ask for a token otherwise
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = str(Path(sys.executable).with_name("ray"))
    where = ["--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Not below tmp_path, since sockets need a short path; and not Ray's own folder, by which others find a cluster.
    place = tempfile.mkdtemp(prefix="ray-")
    where.append(f"--temp-dir={place}")
    words = [ray, "start", "--head", "--block", "--num-cpus=3", "--include-dashboard=false", *where]
    head = subprocess.Popen(words, start_new_session=True, **quiet)
    try:
        since = time.monotonic()
        while subprocess.run([ray, "health-check", "--address", address], timeout=120, **quiet).returncode:
            assert head.poll() is None, "Ray does not start"
            assert time.monotonic() - since < 120, "Ray does not start"
        yield address
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(head.pid, number)
            with suppress(subprocess.TimeoutExpired):
                head.wait(10)
        shutil.rmtree(place, ignore_errors=True)
