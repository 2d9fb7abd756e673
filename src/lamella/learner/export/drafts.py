"""Atomic exports: they are written to a temporary folder, then moved to their place."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["atomic_output"]


def _as_readable_as_usual(place: Path, probe: Path) -> None:
    """Give files the permissions of any new file, because safetensors makes its own readable by their owner alone."""
    probe.touch()
    mode = probe.stat().st_mode
    for file in (place, *place.rglob("*")):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


@contextmanager
def atomic_output(out: Path) -> Generator[Path]:
    """Yield a temporary path for a file or a folder, which is moved to `out` if the context ends without an error.

    Raises:
        ValueError: `out` exists already.
    """
    if out.exists():
        raise ValueError(f"'{out}' exists already; choose another place, or remove it first")
    home = next(folder for folder in out.absolute().parents if folder.exists())  # a move within one file system
    with TemporaryDirectory(dir=home, prefix=".lamella-export-") as scratch:
        place = Path(scratch) / out.name
        yield place
        _as_readable_as_usual(place, Path(scratch) / ".mode")
        out.parent.mkdir(parents=True, exist_ok=True)
        place.rename(out)
