"""One process at a time in a folder that changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.common.files import claim_folder, refuse_links

__all__ = ["exclusive_lock"]


@contextmanager
def exclusive_lock(folder: Path, busy: str) -> Iterator[None]:
    """Hold `folder`, which is made where there is none; the hold dies with its process.

    Args:
        busy: what is said where another process holds it.

    Raises:
        BlockingIOError: another process holds it.
        ValueError: it cannot be written, or its lock is a symbolic link.
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
