"""Training jobs in the background: one at a time, each in its own process."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lamella.serving.faults import reason
from lamella.serving.job import Job
from lamella.serving.uploads_kept import Upload
from lamella.serving.worker import UNTRUSTED

__all__ = ["Jobs"]

REMEMBERED = 100
STARTS = 3
"""A job that was killed this often is given up: it may need more memory than the machine has."""
AS_BEFORE = "the model is unchanged"
log = logging.getLogger("lamella.serve")


class Jobs:
    """Starts training jobs and follows their progress.

    Args:
        model: the model's folder.
        catch_up: a function that loads the newest version of the model for prediction and returns its number.
        seconds: how long a job may run before it is stopped.
        device: what training computes on; None for a GPU if there is one.
        trusted: False for a folder of a stranger; see `Learner.load`.
    """

    def __init__(
        self,
        model: Path,
        catch_up: Callable[[], int],
        *,
        seconds: float,
        device: str | None = None,
        trusted: bool = True,
    ) -> None:
        self.model = model.resolve()
        self.catch_up = catch_up
        self.seconds = seconds
        self.device = device
        self.trusted = trusted
        self.known: dict[int, Job] = {}
        self._count = 0
        self._busy = threading.Lock()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._stopped: set[int] = set()
        self._closed = False

    def claim(self) -> bool:
        """Reserve the right to start jobs, until the jobs of `start` have ended or `release` is called.

        Returns:
            False if it is reserved already.
        """
        return self._busy.acquire(blocking=False)

    def release(self) -> None:
        """Give up a claim for which no job was started."""
        self._busy.release()

    def start(self, sent: Sequence[Upload]) -> Job:
        """Learn the uploads, one after the other. Call `claim` first.

        Args:
            sent: the uploads to learn, at least one.

        Returns:
            The job of the first upload.
        """
        self._count = max([self._count, *(one.job or 0 for one in sent)])
        jobs = [self._noted(one) for one in sent]
        self._thread = threading.Thread(target=self._run, args=(jobs, sent), name="lamella-jobs", daemon=True)
        self._thread.start()
        return jobs[0]

    def stop(self, id: int) -> None:
        """Stop a job for good. This does nothing if the job has ended.

        Args:
            id: the number of the job.
        """
        with self._starting:
            self._stopped.add(id)
            if self._process is not None and self.learning == id:
                self._process.terminate()

    def close(self) -> None:
        """End the running job. The next server of this model resumes it."""
        with self._starting:
            self._closed = True
            if self._process is not None:
                self._process.terminate()
        if self._thread is not None:
            self._thread.join()

    @property
    def learning(self) -> int | None:
        """The number of the running job; None if there is none. Any thread may ask."""
        jobs = list(self.known.values())  # at once, since another thread may add a job meanwhile
        return next((job.id for job in jobs if job.state == "learning"), None)

    def _noted(self, sent: Upload) -> Job:
        number = sent.job
        if number is None or number in self.known:  # two servers may have given one number
            number = self._count = self._count + 1
            with suppress(OSError):  # on a full disk the job is learned all the same, or says so when it begins
                sent.number(number)
        job = self.known[number] = Job(
            number, sent.note["name"], sent.note["images"], sent.note["ignored"], sent.note["starts"]
        )
        for old in sorted(self.known)[:-REMEMBERED]:
            del self.known[old]
        return job

    def _run(self, jobs: Sequence[Job], sent: Sequence[Upload]) -> None:
        for job, one in zip(jobs, sent, strict=True):
            over = False
            started = time.monotonic()
            try:
                over = self._learn(job, one)
            except Exception as error:  # whatever it is, later uploads must be learned
                log.error("%s: its learning ended by an error", job.name, exc_info=error)
                job.error, over = reason(error), True
            job.seconds = time.monotonic() - started
            (one.drop if over else one.leave)()
            if job is jobs[-1]:
                self._busy.release()
            job.state = "failed" if job.error else "done"

    def _learn(self, job: Job, sent: Upload) -> bool:
        """Run a job. Returns whether it has ended, by success or failure; False if the server closes before."""
        while True:
            if job.id in self._stopped:
                job.error = f"the learning was stopped; {AS_BEFORE}"
                return True
            if sent.note["starts"] >= STARTS:
                job.error = f"the learning was killed {STARTS} times, perhaps because memory ran out; {AS_BEFORE}"
                return True
            process = self._begin(job, sent)
            code = 0 if process is None else self._follow(job, process)
            if process is not None and code == 0:
                job.version = self.catch_up()
                return True
            if job.error:
                return True
            if self._closed:
                job.error = "the learning is interrupted; it resumes when the model is served again"
                log.warning("%s: %s", job.name, job.error)
                return False
            if code > 0:
                job.error = f"the learning ended early; the log of the server may say why; {AS_BEFORE}"
                return True

    def _begin(self, job: Job, sent: Upload) -> "subprocess.Popen[str] | None":
        """Start the training process; None if the server is closing."""
        with self._starting:
            if self._closed:
                return None
            sent.begin()
            job.starts, job.expected_seconds = sent.note["starts"], None
            command = [sys.executable, "-m", "lamella.serving.worker", str(self.model), str(sent.folder), job.name]
            command += [self.device or "", "" if self.trusted else UNTRUSTED]
            # The process has its own group, so Ctrl-C reaches the server only, which then ends the process.
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", process_group=0)
            return self._process

    def _follow(self, job: Job, process: "subprocess.Popen[str]") -> int:
        """Read the messages of the process until it ends. Returns its exit code, which is negative if it was killed."""
        started = time.monotonic()
        limit = threading.Timer(self.seconds, process.kill)
        limit.start()
        try:
            with process:
                for line in process.stdout or ():
                    job.seconds = time.monotonic() - started
                    if line.endswith("\n"):  # a killed process may leave an incomplete line
                        job.hear(json.loads(line))
        finally:
            limit.cancel()
        code = process.returncode
        if code and not job.error and time.monotonic() - started >= self.seconds:
            job.error = f"the learning took longer than {self.seconds:g} s; {AS_BEFORE}"
        return code
