"""A process that has imported everything and forks one `lamella` command after another: kills then hit the command."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

FORKING = """
import json, os, sys, time
import torch
torch.set_num_threads(1)
import lamella.cli, lamella.data.sources.readable, lamella.learner.next_task, lamella.learner.expected_costs
import lamella.common.words, rich.progress
import sklearn.datasets, timm.models.vision_transformer, filelock, PIL.PngImagePlugin

def slow(descriptor, flush=os.fsync):
    time.sleep(0.04)
    flush(descriptor)
    time.sleep(0.04)

for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (0, 1, 2):
            os.dup2(log, stream)
        if told["slow_disk"]:
            os.fsync = slow
        sys.argv = ["lamella", *told["words"]]
        try:
            lamella.cli.main()
        except SystemExit as left:
            sys.stdout.flush()
            os._exit(left.code if isinstance(left.code, int) else 0)
        os._exit(99)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Runs commands, each in a fork; `with Nursery(folder) as nursery`.

    Args:
        folder: where what they print goes, into "log".
    """

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"

    def __enter__(self) -> "Nursery":
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def run(self, words: Sequence[object], *, slow_disk: bool = False) -> float:
        """Run a command to its end, which must be a good one; returns its seconds."""
        started = time.monotonic()
        code = self.start(words, slow_disk=slow_disk)[1]()
        assert code == 0, self.log.read_text()
        return time.monotonic() - started

    def kill(
        self, words: Sequence[object], after: float, *, slow_disk: bool = False, since: Path | None = None
    ) -> bool:
        """Start a command and kill it after so many seconds; whether it was still running.

        Args:
            since: a pattern of files; the seconds count from when there is one.
        """
        pid, ended = self.start(words, slow_disk=slow_disk)
        given_up = time.monotonic() + 60
        while since is not None and not any(since.parent.glob(since.name)) and time.monotonic() < given_up:
            time.sleep(0.002)
        time.sleep(after)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, 9)
        return ended() == -9

    def start(self, words: Sequence[object], *, slow_disk: bool = False) -> tuple[int, Callable[[], int]]:
        """Its process id, and a function that waits for its exit code."""
        told = {"words": [str(word) for word in words], "log": str(self.log), "slow_disk": slow_disk}
        print(json.dumps(told), file=self.process.stdin, flush=True)
        assert self.process.stdout is not None
        stdout = self.process.stdout
        return int(stdout.readline()), lambda: int(stdout.readline())
