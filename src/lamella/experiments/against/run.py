"""Compare a method with the code in a checkout, which runs in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.common.options import near_matches
from lamella.experiments.against.known import KNOWN, Known
from lamella.experiments.against.rows import Row

__all__ = ["Against", "check_checkout", "compare_with", "known_method"]

SECONDS = 600
"""The longest that a comparison may take."""


@dataclass(frozen=True)
class Against:
    """A comparison.

    Attributes:
        method: of this package.
        home: where code of this kind comes from.
        commit: the commit of the checkout; "" where that is not known.
        rows: what was compared.
    """

    method: str
    home: str
    commit: str
    rows: tuple[Row, ...]


def known_method(method: str) -> Known:
    """Return what a method is compared with.

    Raises:
        ValueError: there is nothing for it.
    """
    if method not in KNOWN:
        raise ValueError(f"nothing is compared for method '{method}'; {near_matches(method, KNOWN)}")
    return KNOWN[method]


def check_checkout(path: Path, known: Known) -> None:
    """Raise FileNotFoundError where there is no folder that could be a checkout."""
    if not path.is_dir():
        raise FileNotFoundError(f"no folder '{path}'; give a checkout of {known.home}")


def compare_with(path: Path, method: str, *, seconds: float = SECONDS) -> Against:
    """Run the functions of a checkout and ours on the same tensors.

    The functions run in a process of their own, with the rights of the user, on the CPU and in an empty folder.

    Args:
        path: the checkout.
        method: a method of this package.
        seconds: the longest that it may take.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the method is not among those that are compared, the checkout lacks a function, or this failed.
    """
    from lamella.experiments.against.checkout import commit_of

    known = known_method(method)
    check_checkout(path, known)
    here = path.resolve()
    package = str(Path(__file__).resolve().parents[3])
    own = {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",  # nothing is written into the checkout
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "lamella.experiments.against.worker", method, str(here), str(out)]
        place = Path(folder) / "empty"
        place.mkdir()
        try:
            ended = subprocess.run(
                command, cwd=place, env=os.environ | own, capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"the code in '{path}' did not end within {seconds:g} s, so nothing is compared") from None
        failed = {"error": _last_line(ended.stderr, ended.returncode)}
        found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else failed
    if "error" in found:
        raise ValueError(f"'{path}' cannot be compared with {method}: {found['error']}")
    return Against(method, known.home, commit_of(here), tuple(Row(**row) for row in found["rows"]))


def _last_line(log: bytes, code: int) -> str:
    lines = [line.strip() for line in log.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with exit code {code}"
