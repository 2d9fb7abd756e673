"""The model directory as it changes: by a learning of the server's own, by `lamella learn`, by `lamella rollback`."""

import logging
import threading
from pathlib import Path

from lamella.learner.learner import Learner
from lamella.learner.store.versions import load_manifest
from lamella.serving.batching import Batcher, Loaded

__all__ = ["Follower", "load"]

FAULTS = (OSError, ValueError)
log = logging.getLogger("lamella.serve")


def load(folder: Path) -> Loaded:
    """The current version of the model at `folder`.

    Raises:
        FileNotFoundError, ValueError: as `Learner.load`.
    """
    manifest = load_manifest(folder)
    version = int(manifest["version"])
    return Loaded(Learner.load(folder, version), version, manifest)


class Follower:
    """Gives a batcher the current version, whoever made it.

    Args:
        folder: of the model. batcher: that predicts with it. seconds: between looks.

    Attributes:
        problem: why the directory's version cannot be used, else ""; the version before stays in use.
    """

    def __init__(self, folder: Path, batcher: Batcher, *, seconds: float = 1.0) -> None:
        self.folder, self.batcher, self.seconds = folder, batcher, seconds
        self.problem = ""
        self._one_at_a_time = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lamella-follower", daemon=True)
        self._thread.start()

    def catch_up(self) -> int:
        """Use the directory's version from the next batch on; returns its number.

        Raises:
            FileNotFoundError, ValueError: as `Learner.load`; the version before stays in use.
        """
        with self._one_at_a_time:
            # Not the number alone: the folder may be another model's by now.
            if load_manifest(self.folder) != self.batcher.loaded.manifest:
                self.batcher.loaded = load(self.folder)
                log.info("version %d of %s is in use", self.batcher.loaded.version, self.folder)
            self.problem = ""
            return self.batcher.loaded.version

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.seconds):
            try:
                self.catch_up()
            except FAULTS as error:
                if str(error) != self.problem:
                    log.error("version %d stays in use: %s", self.batcher.loaded.version, error)
                self.problem = str(error)
