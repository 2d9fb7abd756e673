"""The routes that change the model: upload an archive to learn from, follow the job, stop it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, File, Form, HTTPException, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer

from lamella.serving.job import Job
from lamella.serving.kind import Columns
from lamella.serving.schemas import DISK, FAULTS, FOREIGN, Problem
from lamella.serving.uploads_kept import Upload, take_in

if TYPE_CHECKING:
    from lamella.serving.service import Service

__all__ = ["add_learning"]

NAME_LENGTH = 200
NO_TOKEN: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "the token is missing or wrong"},
}
DOCUMENTED = [Depends(HTTPBearer(auto_error=False, description="the token of `lamella serve`"))]
"""The token of a route that changes the model, for its description; the gate checks it."""
REFUSALS = {
    **DISK,
    **FAULTS,
    **NO_TOKEN,
    429: {"model": Problem, "description": "a learning is under way"},
}
ABSENT: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "there is no such job"},
    422: FAULTS[422],
}


def add_learning(app: FastAPI, service: "Service") -> None:
    """Add the routes that change the model.

    Args:
        app: the application that receives the routes.
        service: what runs behind the routes.
    """
    kind = service.kind

    @app.post("/learn", status_code=202, responses=REFUSALS, dependencies=DOCUMENTED)
    async def learn(
        archive: Annotated[UploadFile, File(description=kind.archive)],
        name: Annotated[
            str, Form(max_length=NAME_LENGTH, description="the name of the task; by default that of the archive")
        ] = "",
        again: Annotated[bool, Form(description=f"learn {kind.noun}s once more that were learned before")] = False,
        text: Annotated[str, Form(max_length=NAME_LENGTH, description="of a table, the column of the texts")] = "",
        label: Annotated[str, Form(max_length=NAME_LENGTH, description="of a table, the column of the labels")] = "",
    ) -> Job:
        """Learn an archive or a table in the background; `/jobs/{id}` tells the progress."""
        if not service.jobs.claim():
            busy = f"job {now} is learning" if (now := service.jobs.learning) else "another archive is being read"
            raise HTTPException(429, f"{busy}; try again when it is done", {"Retry-After": "10"})
        try:
            sent = await run_in_threadpool(_taken_in, service, archive, name, again, Columns(text, label))
            return replace(service.jobs.start([sent]))
        except BaseException:
            service.jobs.release()
            raise

    @app.get("/jobs/{id}", responses=ABSENT)
    def job(id: int) -> Job:
        """Tell the progress of a job."""
        return replace(_known(service, id))

    @app.delete("/jobs/{id}", status_code=202, responses=ABSENT | NO_TOKEN | FOREIGN, dependencies=DOCUMENTED)
    def stop(id: int) -> Job:
        """Stop a job and leave the model unchanged. This does nothing if the job has ended."""
        service.jobs.stop(_known(service, id).id)
        return replace(_known(service, id))


def _taken_in(service: "Service", archive: UploadFile, name: str, again: bool, columns: Columns) -> Upload:
    """Store an archive or a table in the model's folder.

    Raises:
        HTTPException: it is refused, with a status of `Kind.unpack`; 503, the model is missing or damaged; 507, its
            folder cannot be written.
    """
    try:
        sent = take_in(service.model, service.kind.noun)
        try:
            found = service.kind.unpack(archive, sent.samples, columns)
            task = _printable(name) or _printable(Path(archive.filename or "").stem) or "uploaded"
            sent.keep(task, found.samples, found.ignored, again=again, columns=columns)
        except BaseException:
            sent.drop()
            raise
    except (FileNotFoundError, ValueError) as error:
        raise HTTPException(503, str(error)) from None
    except OSError as error:
        raise HTTPException(507, f"'{service.model}' cannot be written: {error.strerror}") from None
    return sent


def _known(service: "Service", id: int) -> Job:
    if id not in service.jobs.known:
        raise HTTPException(404, f"there is no job {id}; POST /learn starts one and returns its id")
    return service.jobs.known[id]


def _printable(name: str) -> str:
    return "".join(c for c in name if c.isprintable()).strip()[:NAME_LENGTH]
