"""Uploads that are not learned yet. They are stored in the model's folder, so that a killed server loses none.

    MODEL/sent/<time>/images/     the class folders of unpacked images
    MODEL/sent/<time>/texts/      of a model of texts instead: class folders of text files, or one table
    MODEL/sent/<time>/answers/    of a model of answers: one table
    MODEL/sent/<time>/sent.json   its description; written last, so the upload is complete if this file exists
    MODEL/sent/<time>/learning/   the checkpoints of its training
    MODEL/sent/<time>/.lock       held by the server that works on the upload

The lock is released when its server ends. An upload that no server has locked was therefore interrupted.
"""

import logging
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

__all__ = [
    "ANSWERS",
    "CHECKPOINTS",
    "IMAGES",
    "TEXTS",
    "Upload",
    "check_places",
    "columns_sent",
    "interrupted",
    "samples_sent",
    "sent_again",
    "take_in",
    "tasks_before",
]

FOLDER, CHECKPOINTS, NOTE = "sent", "learning", "sent.json"
IMAGES, TEXTS, ANSWERS = PLACES = "images", "texts", "answers"
"""The folders of samples, each called by what they are."""
LARGEST_JOB = 2**31
TIME = re.compile(r"\d+-[0-9a-f]{4}")
"""The names of the folders of uploads. Any other folder is left alone."""
DESCRIBED: dict[str, type] = {"name": str, "images": int, "ignored": list, "starts": int, "tasks": int}
"""What every complete description has; see `Upload`."""
log = logging.getLogger("lamella.serve")


class Upload:
    """One upload, locked by this process.

    Args:
        folder: the folder of the upload, which must exist.

    Attributes:
        note: the description of the upload: the "name" of the task, the number of samples (as "images"), the files
            "ignored", how often its training was started ("starts"), how many "tasks" the model had when it arrived,
            whether samples that were learned before are learned "again", the "columns" of a table, and the number
            of its "job" once it has one.

    Raises:
        Timeout: another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.note: dict[str, Any] = {}
        # One thread acquires the lock, another one releases it.
        self._hold = FileLock(folder / ".lock", timeout=0, thread_local=False)
        self._hold.acquire()

    @property
    def samples(self) -> Path:
        """The folder of its samples."""
        return samples_sent(self.folder)

    def keep(
        self, name: str, samples: int, ignored: Sequence[str], *, again: bool = False, columns: Sequence[str] = ()
    ) -> None:
        """Write the description, which marks the upload as complete.

        Args:
            name: the name of the task.
            samples: how many samples the upload has.
            ignored: the names of the files that are no samples.
            again: whether samples that were learned before are learned once more.
            columns: of a table, the columns of texts and of labels.
        """
        said = {"name": name, "images": samples, "ignored": list(ignored), "again": again, "columns": list(columns)}
        self._write({**self.note, **said, "starts": 0})

    @property
    def job(self) -> int | None:
        """The number of the job that an earlier server has given it; None if it has none."""
        number = self.note.get("job")
        return number if type(number) is int and 0 < number < LARGEST_JOB else None

    def number(self, job: int) -> None:
        """Write down the number of its job, which it keeps when a later server resumes it."""
        self._write({**self.note, "job": job})

    def begin(self) -> None:
        """Count one more start of its training."""
        self._write({**self.note, "starts": self.note["starts"] + 1})

    def _write(self, note: dict[str, Any]) -> None:
        write_json(self.folder / NOTE, note)
        self.note = note

    def drop(self) -> None:
        """Delete the upload: it is learned, or it will not be learned."""
        rmtree(self.folder, ignore_errors=True)
        self._hold.release()
        with suppress(OSError):  # the folder holds another upload
            self.folder.parent.rmdir()

    def leave(self) -> None:
        """Release the upload and leave it for the next server."""
        self._hold.release()


def take_in(model: Path, noun: str = "image") -> Upload:
    """Create an empty upload.

    Args:
        model: the model's folder.
        noun: what one sample is called: "image", "text" or "answer".

    Raises:
        FileNotFoundError: there is no model at `model`.
        ValueError: the model cannot be read, or "sent" in its folder is a symbolic link.
        OSError: the folder cannot be written.
    """
    tasks = len(load_manifest(model)["tasks"])
    refuse_links(model / FOLDER)
    folder = model / FOLDER / f"{time.time_ns()}-{token_hex(2)}"
    (folder / f"{noun}s").mkdir(parents=True)
    folder.chmod(0o700)
    sent = Upload(folder)
    sent.note["tasks"] = tasks
    return sent


def check_places(model: Path) -> None:
    """Make sure that learning an upload writes and deletes inside the model's folder only.

    Args:
        model: the model's folder.

    Raises:
        ValueError: a folder or file that Lamella makes there is a symbolic link.
    """
    refuse_links(model / VERSIONS)
    _archives(model)


def _archives(model: Path) -> list[Path]:
    """Return the folders of all uploads, oldest first. Raises ValueError if one is or contains a symbolic link."""
    refuse_links(model / FOLDER)
    found = sorted(folder for folder in (model / FOLDER).glob("*/") if TIME.fullmatch(folder.name))
    refuse_links(*found, *(folder / own for folder in found for own in (".lock", *PLACES, NOTE, CHECKPOINTS)))
    refuse_links(*(file for folder in found for own in (TEXTS, ANSWERS) for file in (folder / own).glob("*")))
    return found


def interrupted(model: Path) -> list[Upload]:
    """Return the uploads that no server has locked, oldest first. Incomplete ones are deleted.

    One whose description cannot be read is left where it is, with a warning, so that the server starts all the same.

    Args:
        model: the model's folder.

    Raises:
        ValueError: a folder or file that Lamella makes there is a symbolic link.
    """
    found: list[Upload] = []
    for folder in _archives(model):
        try:
            sent = Upload(folder)
        except (Timeout, OSError):  # another server holds the lock, or the folder is read-only
            continue
        if not (folder / NOTE).exists():
            sent.drop()
            continue
        try:
            sent.note = _described(folder)
            found.append(sent)
        except ValueError as error:
            log.warning("%s; delete the folder, and send the samples again", error)
            sent.leave()
    return found


def _described(folder: Path) -> dict[str, Any]:
    """Return the description of the upload in `folder`.

    Raises:
        ValueError: it is damaged, or that of something else.
    """
    note = read_json(folder / NOTE)
    if not isinstance(note, dict):
        raise ValueError(f"'{folder / NOTE}' does not describe an upload")
    wrong = [repr(key) for key, kind in DESCRIBED.items() if not isinstance(note.get(key), kind)]
    if wrong:
        raise ValueError(f"'{folder / NOTE}' does not describe an upload: no right value for {', '.join(wrong)}")
    return note


def tasks_before(folder: Path) -> int:
    """Return how many tasks the model had when the upload in `folder` arrived."""
    return int(_described(folder)["tasks"])


def sent_again(folder: Path) -> bool:
    """Return whether the upload in `folder` asks that samples that were learned before are learned once more."""
    return bool(_described(folder).get("again"))


def samples_sent(folder: Path) -> Path:
    """Return the folder of the samples of the upload in `folder`."""
    return next((folder / own for own in PLACES if (folder / own).is_dir()), folder / IMAGES)


def columns_sent(folder: Path) -> tuple[str, str]:
    """Return the columns of texts and of labels of the table in `folder`; "" for the usual names."""
    text, label = _described(folder).get("columns") or ("", "")
    return str(text), str(label)
