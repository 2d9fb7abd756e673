"""Where an interrupted call of `fit` goes on: one atomic file per (task, named call)."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lamella.common.files import read_tensors, refuse_links, write_tensors

__all__ = ["Checkpoints"]


class Checkpoints:
    """Files of the running task's calls under `folder`, at most one every `seconds` for a call that is under way.

    Raises:
        ValueError: `seconds` is below 0, or `folder` or the folder of a task in it is a symbolic link.
    """

    def __init__(self, folder: Path, seconds: float = 60.0) -> None:
        if not seconds >= 0:
            raise ValueError(f"checkpoint_seconds is {seconds}; it must be 0 (after every batch) or more")
        refuse_links(folder, *folder.glob("task-*"))
        self.folder = folder
        self.seconds = seconds
        self._last = time.monotonic()

    def _path(self, task: str, call: str) -> Path:
        return self.folder / f"task-{task}" / f"{call}.safetensors"

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.seconds

    def save(self, task: str, call: str, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        write_tensors(self._path(task, call), tensors, position)
        self._last = time.monotonic()

    def load(self, task: str, call: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self._path(task, call)
        return read_tensors(path) if path.exists() else None

    def clear(self) -> None:
        """Forget every call: the task they belong to is finished and stored.

        What else lies in the folder tells whose calls they are, so it goes last: a kill on the way leaves no calls of
        which nobody knows that they were finished.
        """
        for calls in self.folder.glob("task-*"):
            shutil.rmtree(calls, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
