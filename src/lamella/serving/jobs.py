"""Learning in the background, one at a time, each in a process of its own."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Job", "Jobs"]

REMEMBERED = 100


@dataclass
class Job:
    """A learning: what of, how far, and what came of it.

    Attributes:
        id: of the job, counted from 1. name: of the task. images: that were sent. ignored: files that are no images.
        state: what it is doing. error: why it failed, in one line, else "".
        classes: of the task, once they are known; new: those of them that the model did not know.
        step: the pass that is under way; steps: how many steps of it are done, `of` so many.
        version: of the model that it made. held_back, right: images that were not learned from, and how many of them
            the model gets right. seconds: since it began, or that it took.
    """

    id: int
    name: str
    images: int
    ignored: list[str]
    state: Literal["learning", "done", "failed"] = "learning"
    error: str = ""
    classes: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    step: str = "starting"
    steps: int = 0
    of: int = 0
    version: int | None = None
    held_back: int = 0
    right: int = 0
    seconds: float = 0.0


class Jobs:
    """Starts learnings and follows them.

    Args:
        model: folder of the model.
        catch_up: puts a newly learned version to use and returns its number.
        seconds: after which a learning is given up.
    """

    def __init__(self, model: Path, catch_up: Callable[[], int], *, seconds: float) -> None:
        self.model, self.catch_up, self.seconds = model.resolve(), catch_up, seconds
        self.known: dict[int, Job] = {}
        self._count = 0
        self._busy = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def claim(self) -> bool:
        """Whether nothing is being learned; then nothing else may be, until `start` has ended or `release`."""
        return self._busy.acquire(blocking=False)

    def release(self) -> None:
        """Give up a claim that no job was started with."""
        self._busy.release()

    def start(self, folder: Path, name: str, images: int, ignored: list[str]) -> Job:
        """Learn the class folders in `folder`, which is removed afterwards; `claim` was granted.

        Args:
            folder: absolute. name: of the task.
        """
        self._count += 1
        job = self.known[self._count] = Job(self._count, name, images, ignored)
        for old in sorted(self.known)[:-REMEMBERED]:
            del self.known[old]
        command = [sys.executable, "-m", "lamella.serving.teach", str(self.model), str(folder), name]
        # In a group of its own: Ctrl-C is for the server, which ends the learning in its turn.
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", process_group=0)
        self._thread = threading.Thread(target=self._follow, args=(job, self._process, folder), daemon=True)
        self._thread.start()
        return job

    def close(self) -> None:
        """End a learning that is under way; the model stays as it was before."""
        if self._process is not None:
            self._process.terminate()
        if self._thread is not None:
            self._thread.join()

    def _follow(self, job: Job, process: "subprocess.Popen[str]", folder: Path) -> None:
        started = time.monotonic()
        limit = threading.Timer(self.seconds, process.kill)
        limit.start()
        try:
            for line in process.stdout or ():
                _hear(job, json.loads(line))
                job.seconds = time.monotonic() - started
            if process.wait() and not job.error:
                late = time.monotonic() - started >= self.seconds
                why = f"took longer than {self.seconds:g} s" if late else "ended early; the server's log may say why"
                job.error = f"the learning {why}; the model is as before"
            if not job.error:
                job.version = self.catch_up()
        except (OSError, ValueError) as error:
            job.error = str(error)
        finally:
            limit.cancel()
            shutil.rmtree(folder, ignore_errors=True)
            job.seconds = time.monotonic() - started
            self._busy.release()
            job.state = "failed" if job.error else "done"


def _hear(job: Job, said: dict[str, Any]) -> None:
    """What the process said, noted; see teach.py."""
    if "done" in said:
        held_back = said["done"].get("held_back", {})
        job.held_back, job.right = held_back.get("images", 0), held_back.get("right", 0)
    else:
        for key, value in said.items():
            setattr(job, key, value)
