"""Checkpoints, from which interrupted calls of `fit` are resumed: one atomic file for each call of a task."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lamella.common.files import read_tensors, refuse_links, write_tensors
from lamella.training import processes

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoint files of the calls of the current task. Of several processes the first writes and reads them.

    Args:
        folder: the folder of the files.
        seconds: the shortest time between two checkpoints of a running call; at least 0, and 0 stores one after every
            batch.

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
        return processes.leads() and time.monotonic() - self._last >= self.seconds

    def save(self, task: str, call: str, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        if processes.leads():
            write_tensors(self._path(task, call), tensors, position)
        self._last = time.monotonic()

    def load(self, task: str, call: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self._path(task, call)
        return processes.from_first(lambda: read_tensors(path) if path.exists() else None)

    def clear(self) -> None:
        """Remove the checkpoints of all calls, because their task is finished and stored.

        The other files in the folder say which task the calls belong to, so they are removed last. Then a kill in
        between leaves no checkpoints whose task is unknown.
        """
        if not processes.leads():
            return
        for calls in self.folder.glob("task-*"):
            shutil.rmtree(calls, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
