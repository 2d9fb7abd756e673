"""Loads the newest version of a model whenever its folder changes.

The folder changes by a job of the server, by `lamella learn`, or by `lamella rollback`.
"""

import logging
import threading
from pathlib import Path
from typing import Any

from lamella.learner.learner import Learner
from lamella.learner.store.versions import load_manifest
from lamella.serving.batching import Batcher, Loaded
from lamella.serving.faults import reason

__all__ = ["ModelWatcher", "load"]

log = logging.getLogger("lamella.serve")


def load(folder: Path, device: str | None = None, *, trusted: bool = True) -> Loaded:
    """Load the current version of a model.

    Args:
        folder: the model's folder.
        device: what to compute on; None for a GPU if there is one.
        trusted: False for a folder of a stranger; see `Learner.load`.

    Raises:
        FileNotFoundError: there is no model at `folder`.
        ValueError: the model cannot be read.
    """
    manifest = load_manifest(folder)
    version = int(manifest["version"])
    return Loaded(Learner.load(folder, version, device=device, trusted=trusted), version, manifest)


class ModelWatcher:
    """Watches the model's folder in a thread and gives new versions to a batcher.

    Args:
        folder: the model's folder.
        batcher: the batcher that predicts with the model.
        seconds: the time between two checks of the folder.
        device: what new versions compute on; None for a GPU if there is one.
        trusted: False for a folder of a stranger; see `Learner.load`.

    Attributes:
        problem: one line that says why the newest version cannot be used; "" if it can. Until then the version before
            it stays in use.
    """

    def __init__(
        self,
        folder: Path,
        batcher: Batcher[Any],
        *,
        seconds: float = 1.0,
        device: str | None = None,
        trusted: bool = True,
    ) -> None:
        self.folder = folder
        self.batcher = batcher
        self.seconds = seconds
        self.device = device
        self.trusted = trusted
        self.problem = ""
        self._one_at_a_time = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lamella-follower", daemon=True)
        self._thread.start()

    def catch_up(self) -> int:
        """Load the current version if it is not in use yet; the next batch is predicted with it.

        Returns:
            The number of the version in use.

        Raises:
            FileNotFoundError: the model is missing. The version before stays in use.
            ValueError: the model cannot be read, or takes samples of another kind. The version before stays in use.
        """
        with self._one_at_a_time:
            self._catch_up()
            return self.batcher.loaded.version

    def _catch_up(self) -> None:
        # Compare the whole metadata, not only the number: the folder may hold another model by now.
        if load_manifest(self.folder) == self.batcher.loaded.manifest:
            self.problem = ""
            return
        found = load(self.folder, self.device, trusted=self.trusted)
        self._check_kind(found)
        self.problem = ""  # first, so that nobody sees the new version beside the problem of an old one
        self.batcher.loaded = found
        log.info("version %d of %s is in use", found.version, self.folder)

    def _check_kind(self, found: Loaded) -> None:
        old, new = (each.learner.backbone.transform.noun for each in (self.batcher.loaded, found))
        if new != old:
            raise ValueError(
                f"'{self.folder}' holds a model of {new}s by now, and this server is one of {old}s; start it again"
            )

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.seconds):
            with self._one_at_a_time:  # also while a problem is noted: a job may bring a good version meanwhile
                try:
                    self._catch_up()
                except Exception as error:  # whatever is wrong with the folder must not end this thread
                    self._note(reason(error))

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            log.error("version %d stays in use: %s", self.batcher.loaded.version, problem)
        self.problem = problem
