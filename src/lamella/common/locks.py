"""A lock that lets only one process at a time change a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.common.files import claim_folder, refuse_links

__all__ = ["exclusive_lock"]


@contextmanager
def exclusive_lock(folder: Path, busy: str) -> Iterator[None]:
    """Hold `folder`, which is made where there is none; the hold dies with its process.

    Args:
        folder: the folder, which is created if it does not exist.
        busy: the message of the error if another process holds the lock.

    Raises:
        BlockingIOError: another process holds the lock.
        ValueError: the folder cannot be written, or its lock file is a symbolic link.
    """
    from filelock import FileLock, Timeout

    refuse_links(folder / ".lock")
    claim_folder(folder)
    try:
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise BlockingIOError(busy) from error
    with held:
        yield
