"""Learning in the background, one at a time, each in a process of its own."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lamella.serving.job import Job
from lamella.serving.uploads_kept import Sent

__all__ = ["Jobs"]

REMEMBERED = 100
STARTS = 3
"""A learning that is killed as often will be so again: it may need more memory than there is."""
AS_BEFORE = "the model is as before"
log = logging.getLogger("lamella.serve")


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
        self._starting = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._stopped: set[int] = set()
        self._closed = False

    def claim(self) -> bool:
        """Whether nothing is being learned; then nothing else may be, until `start` has ended or `release`."""
        return self._busy.acquire(blocking=False)

    def release(self) -> None:
        """Give up a claim that no job was started with."""
        self._busy.release()

    def start(self, sent: Sequence[Sent]) -> Job:
        """Learn what was sent, one after the other; `claim` was granted. Returns the first one's job."""
        jobs = [self._noted(one) for one in sent]
        self._thread = threading.Thread(target=self._run, args=(jobs, sent), name="lamella-jobs", daemon=True)
        self._thread.start()
        return jobs[0]

    def stop(self, id: int) -> None:
        """Give up a learning for good; does nothing where it has ended."""
        with self._starting:
            self._stopped.add(id)
            if self._process is not None and self._learning() == id:
                self._process.terminate()

    def close(self) -> None:
        """End a learning that is under way; the next server goes on with it."""
        with self._starting:
            self._closed = True
            if self._process is not None:
                self._process.terminate()
        if self._thread is not None:
            self._thread.join()

    def _learning(self) -> int | None:
        return next((job.id for job in self.known.values() if job.state == "learning"), None)

    def _noted(self, sent: Sent) -> Job:
        self._count += 1
        job = self.known[self._count] = Job(
            self._count, sent.note["name"], sent.note["images"], sent.note["ignored"], sent.note["starts"]
        )
        for old in sorted(self.known)[:-REMEMBERED]:
            del self.known[old]
        return job

    def _run(self, jobs: Sequence[Job], sent: Sequence[Sent]) -> None:
        for job, one in zip(jobs, sent, strict=True):
            over = False
            started = time.monotonic()
            try:
                over = self._learn(job, one)
            except (OSError, ValueError) as error:
                job.error, over = str(error), True
            job.seconds = time.monotonic() - started
            (one.drop if over else one.leave)()
            if job is jobs[-1]:
                self._busy.release()
            job.state = "failed" if job.error else "done"

    def _learn(self, job: Job, sent: Sent) -> bool:
        """Whether it is over, well or not; it is not where the server ends."""
        while True:
            if job.id in self._stopped:
                job.error = f"the learning was stopped; {AS_BEFORE}"
                return True
            if sent.note["starts"] >= STARTS:
                job.error = (
                    f"the learning was killed {STARTS} times, perhaps for want of memory; the model is as before"
                )
                return True
            process = self._begin(job, sent)
            code = 0 if process is None else self._follow(job, process)
            if process is not None and code == 0:
                job.version = self.catch_up()
                return True
            if job.error:
                return True
            if self._closed:
                job.error = "the learning is interrupted; it goes on when the model is served again"
                log.warning("%s: %s", job.name, job.error)
                return False
            if code > 0:
                job.error = f"the learning ended early; the server's log may say why; {AS_BEFORE}"
                return True

    def _begin(self, job: Job, sent: Sent) -> "subprocess.Popen[str] | None":
        """The process that learns; None where the server has ended."""
        with self._starting:
            if self._closed:
                return None
            sent.begin()
            job.starts = sent.note["starts"]
            command = [sys.executable, "-m", "lamella.serving.worker", str(self.model), str(sent.folder), job.name]
            # In a group of its own: Ctrl-C is for the server, which ends the learning in its turn.
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", process_group=0)
            return self._process

    def _follow(self, job: Job, process: "subprocess.Popen[str]") -> int:
        """How the process ended; below 0, it was killed."""
        started = time.monotonic()
        limit = threading.Timer(self.seconds, process.kill)
        limit.start()
        with process:
            for line in process.stdout or ():
                if line.endswith("\n"):  # a kill may cut one off
                    job.hear(json.loads(line))
                job.seconds = time.monotonic() - started
        code = process.returncode
        limit.cancel()
        if code and not job.error and time.monotonic() - started >= self.seconds:
            job.error = f"the learning took longer than {self.seconds:g} s; {AS_BEFORE}"
        return code
