"""Trials in processes of their own on this machine: a trial that crashes or is killed takes no other one with it."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lamella.experiments.sweep.plan import Trial
from lamella.experiments.sweep.sweep import Ended
from lamella.experiments.sweep.worker import LOG

__all__ = ["Processes", "threads_of_each"]

WORKER = [sys.executable, "-m", "lamella.experiments.sweep.worker"]
BETWEEN_LOOKS = 0.1
"""Seconds between two looks at the processes."""


class Processes:
    """An engine that runs so many trials at a time on this machine, each in a process of its own.

    Args:
        number: of processes at a time, 1 or more. Each gets its share of the machine's threads, unless
            OMP_NUM_THREADS says how many.
    """

    def __init__(self, number: int = 1) -> None:
        if number < 1:
            raise ValueError(f"{number} processes run nothing; give 1 or more")
        self.number = number

    def __call__(self, trials: Sequence[Trial], out: Path, ended: Ended) -> None:
        waiting, running = deque(trials), dict[subprocess.Popen[str], Trial]()
        try:
            while waiting or running:
                while waiting and len(running) < self.number:
                    trial = waiting.popleft()
                    running[self._start(trial, out / trial.name)] = trial
                for process in [process for process in running if process.poll() is not None]:
                    trial = running.pop(process)
                    _let_go(process)
                    ended(trial, _failure(process.returncode, out / trial.name / LOG))
                time.sleep(BETWEEN_LOOKS if running else 0)
        finally:
            for process in running:
                _let_go(process)
            for process in running:
                process.wait()

    def _start(self, trial: Trial, folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(parents=True, exist_ok=True)
        threads = {"OMP_NUM_THREADS": str(threads_of_each(self.number)), "PYTHONUNBUFFERED": "1"}
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [*WORKER, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env=threads | os.environ,
            )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it ended at once, and its log says why
            process.stdin.write(json.dumps(trial.config) + "\n")
            process.stdin.flush()
        return process


def threads_of_each(processes: int) -> int:
    """The threads of one of so many processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def _let_go(process: subprocess.Popen[str]) -> None:
    """Close the pipe that keeps a worker alive."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()


def _failure(code: int, log: Path) -> str:
    """Why a process failed, in one line; "" where it did not."""
    if code == 0:
        return ""
    if code < 0:
        return f"its process was ended by signal {-code}"
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"its process ended with exit code {code}")
