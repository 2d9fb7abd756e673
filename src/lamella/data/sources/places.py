"""Where data sets lie on this machine."""

import os
from pathlib import Path

__all__ = ["download_place", "look_for", "places"]

VARIABLE = "LAMELLA_DATA"


def places(root: str | Path | None) -> list[Path]:
    """The folders to look in: the root where given, else $LAMELLA_DATA and the cache."""
    if root is not None:
        return [Path(root).expanduser()]
    return [*([Path(os.environ[VARIABLE]).expanduser()] if os.environ.get(VARIABLE) else []), _cache()]


def download_place(root: str | Path | None) -> Path:
    """The folder downloads go to: the first of `places` that can be written."""
    candidates = places(root)
    writable = (place for place in candidates if place.is_dir() and os.access(place, os.W_OK))
    return next(writable, candidates[-1])


def look_for(root: str | Path | None, *names: str) -> Path | None:
    """The first file or folder with one of these names in one of the places."""
    return next((place / name for place in places(root) for name in names if (place / name).exists()), None)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamella"
