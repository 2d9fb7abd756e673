"""Archives that were sent and are not learned yet. They lie in the model's folder, so that no kill loses them.

    MODEL/sent/<time>/images/     what was unpacked
    MODEL/sent/<time>/sent.json   what it is; written last, so that it says that the rest is whole
    MODEL/sent/<time>/learning/   where its learning goes on

A hold on each dies with the server that took it in: what nobody holds was interrupted.
"""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any

from filelock import FileLock, Timeout

from lamella.common.files import read_json, refuse_links, write_json
from lamella.learner.store.versions import VERSIONS, load_manifest

__all__ = ["CHECKPOINTS", "IMAGES", "Sent", "check_places", "interrupted", "take_in", "tasks_before"]

FOLDER, IMAGES, CHECKPOINTS, NOTE = "sent", "images", "learning", "sent.json"
TIME = re.compile(r"\d+-[0-9a-f]{4}")
"""Names of the archives' folders; any other folder is somebody else's, and stays as it is."""


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
        ValueError: "sent" in it is a symbolic link.
        OSError: it cannot be written.
    """
    tasks = len(load_manifest(model)["tasks"])
    refuse_links(model / FOLDER)
    folder = model / FOLDER / f"{time.time_ns()}-{token_hex(2)}"
    (folder / IMAGES).mkdir(parents=True)
    folder.chmod(0o700)
    sent = Sent(folder)
    sent.note["tasks"] = tasks
    return sent


def check_places(model: Path) -> None:
    """Make sure that learning what is sent would write and delete nowhere but in the model's own folder.

    Raises:
        ValueError: a folder or file that Lamella makes there is a symbolic link.
    """
    refuse_links(model / VERSIONS)
    _archives(model)


def _archives(model: Path) -> list[Path]:
    """The folders of what was sent, oldest first; raises ValueError where a link is among them or in one of them."""
    refuse_links(model / FOLDER)
    found = sorted(folder for folder in (model / FOLDER).glob("*/") if TIME.fullmatch(folder.name))
    refuse_links(*found, *(folder / own for folder in found for own in (".lock", IMAGES, NOTE, CHECKPOINTS)))
    return found


def interrupted(model: Path) -> list[Sent]:
    """What no server holds, oldest first; what had not come in whole is removed.

    Raises:
        ValueError: as `check_places`.
    """
    found: list[Sent] = []
    for folder in _archives(model):
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
