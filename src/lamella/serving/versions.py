"""The routes of the model's versions: list them, and make another one the current one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Query

from lamella.learner.folder import ModelFolder
from lamella.learner.store.versions import Version
from lamella.serving.learning import DOCUMENTED, NO_TOKEN
from lamella.serving.schemas import DISK, FAULTS, FOREIGN, Problem, VersionRow

if TYPE_CHECKING:
    from lamella.serving.service import Service

__all__ = ["add_versions"]

GONE: dict[int | str, dict[str, Any]] = {
    503: {"model": Problem, "description": "the model is missing or damaged"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    **FOREIGN,
    **GONE,
    **DISK,
    **NO_TOKEN,
    404: {"model": Problem, "description": "there is no such version"},
    422: FAULTS[422],
    429: {"model": Problem, "description": "the model is being changed"},
}
LARGEST = 10**9
"""The number of no version is as large."""


def add_versions(app: FastAPI, service: "Service") -> None:
    """Add the routes of the model's versions.

    Args:
        app: the application that receives the routes.
        service: what runs behind the routes.
    """
    folder = ModelFolder(service.model)

    @app.get("/versions", responses=GONE)
    def versions() -> list[VersionRow]:
        """List the versions of the model, oldest first. No version is ever changed."""
        return [VersionRow.of(version) for version in _listed(folder)]

    @app.post("/rollback", responses=REFUSALS, dependencies=DOCUMENTED)
    def rollback(to: Annotated[int, Query(ge=1, lt=LARGEST, description="the number of the version")]) -> VersionRow:
        """Use another version of the model, an earlier or a later one. All versions are kept."""
        if not service.jobs.claim():
            busy = f"job {now} is learning" if (now := service.jobs.learning) else "an archive is being read"
            raise HTTPException(429, f"{busy}; stop it or try again when it is done", {"Retry-After": "10"})
        try:
            known = [version.number for version in _listed(folder)]
            if to not in known:
                raise HTTPException(404, f"there is no version {to}; there are {', '.join(map(str, known))}")
            with _faults(folder):
                version = folder.roll_back(to)
                service.follower.catch_up()
            return VersionRow.of(version)
        finally:
            service.jobs.release()


def _listed(folder: ModelFolder) -> list[Version]:
    with _faults(folder):
        return folder.history()


@contextmanager
def _faults(folder: ModelFolder) -> Iterator[None]:
    """Turn errors of the model's folder into answers."""
    try:
        yield
    except BlockingIOError as error:  # another process holds the lock
        raise HTTPException(429, str(error), {"Retry-After": "10"}) from None
    except (FileNotFoundError, ValueError) as error:
        raise HTTPException(503, str(error)) from None
    except OSError as error:
        raise HTTPException(507, f"'{folder.path}' cannot be written: {error.strerror}") from None
