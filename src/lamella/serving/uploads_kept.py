"""Archives that were sent and are not learned yet. They lie in the model's folder, so that no kill loses them.

    MODEL/sent/<time>/images/     what was unpacked
    MODEL/sent/<time>/sent.json   what it is; written last, so that it says that the rest is whole
    MODEL/sent/<time>/learning/   where its learning goes on

A hold on each dies with the server that took it in: what nobody holds was interrupted.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any

from filelock import FileLock, Timeout

from lamella.common.files import read_json, write_json
from lamella.learner.store.versions import load_manifest

__all__ = ["CHECKPOINTS", "IMAGES", "Sent", "interrupted", "take_in", "tasks_before"]

FOLDER, IMAGES, CHECKPOINTS, NOTE = "sent", "images", "learning", "sent.json"


class Sent:
    """One archive, held by this process.

    Attributes:
        images: the folder of its class folders. note: "name" of the task, how many "images", files "ignored", how
            often learning it was begun ("starts"), and how many "tasks" the model had when it came.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, folder / IMAGES
        self.note: dict[str, Any] = {}
        # Taken by one thread, let go by another.
        self._hold = FileLock(folder / ".lock", timeout=0, thread_local=False)
        self._hold.acquire()

    def keep(self, name: str, images: int, ignored: Sequence[str]) -> None:
        """From now on it is whole."""
        self._write({**self.note, "name": name, "images": images, "ignored": list(ignored), "starts": 0})

    def begin(self) -> None:
        """Learning it begins once more."""
        self._write({**self.note, "starts": self.note["starts"] + 1})

    def _write(self, note: dict[str, Any]) -> None:
        write_json(self.folder / NOTE, note)
        self.note = note

    def drop(self) -> None:
        """It is learned, or will not be."""
        rmtree(self.folder, ignore_errors=True)
        self._hold.release()
        with suppress(OSError):  # another one is there, too
            self.folder.parent.rmdir()

    def leave(self) -> None:
        """It stays for the next server."""
        self._hold.release()


def take_in(model: Path) -> Sent:
    """An empty place for an archive.

    Raises:
        FileNotFoundError, ValueError: there is no model at `model` any more, or none that can be read.
        OSError: it cannot be written.
    """
    tasks = len(load_manifest(model)["tasks"])
    folder = model / FOLDER / f"{time.time_ns()}-{token_hex(2)}"
    (folder / IMAGES).mkdir(parents=True)
    folder.chmod(0o700)
    sent = Sent(folder)
    sent.note["tasks"] = tasks
    return sent


def interrupted(model: Path) -> list[Sent]:
    """What no server holds, oldest first; what had not come in whole is removed."""
    found: list[Sent] = []
    for folder in sorted((model / FOLDER).glob("*/")):
        try:
            sent = Sent(folder)
        except (Timeout, OSError):  # another server's, or a folder that is only served from
            continue
        if (folder / NOTE).exists():
            sent.note = read_json(folder / NOTE)
            found.append(sent)
        else:
            sent.drop()
    return found


def tasks_before(folder: Path) -> int:
    """How many tasks the model had when the archive came into `folder`."""
    return int(read_json(folder / NOTE)["tasks"])
