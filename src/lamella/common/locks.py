"""A lock that lets only one process at a time change a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.common.files import claim_folder, refuse_links

__all__ = ["alone"]


@contextmanager
def alone(folder: Path, busy: str) -> Iterator[None]:
    """Lock a folder. The lock is released at the end of the context, or when the process ends.

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
