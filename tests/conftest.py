"""Every test runs on one thread: results repeat, and two workers do not fight for the cores."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy read it; processes that tests start read it too

import pytest
import torch

from lamella.cli import main

sys.path.insert(0, str(Path(__file__).parent))
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
