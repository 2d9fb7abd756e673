"""The routes: what is asked, and who answers."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer

import lamella
from lamella.serving.batching import Batcher
from lamella.serving.following import Follower, load
from lamella.serving.gate import Gate
from lamella.serving.jobs import Job, Jobs
from lamella.serving.limits import Limits
from lamella.serving.measures import Measured, Measures
from lamella.serving.predicting import Desk
from lamella.serving.schemas import FAULTS, ClassRow, Health, Predicted, Predictions, Problem, TaskRow
from lamella.serving.uploads import unpack

__all__ = ["create_app"]

PAGE = Path(__file__).parent / "page.html"
OWN_ONLY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
"""The page loads nothing from elsewhere, and nothing frames it."""
NAME_LENGTH = 200


class Service:
    """All that runs behind the routes.

    Args:
        model: folder of the model. limits: on requests.
    """

    def __init__(self, model: Path, limits: Limits) -> None:
        self.limits = limits
        loaded = load(model)
        self.measures = Measures(
            version=lambda: self.batcher.loaded.version, waiting=lambda: self.desk.waiting,
            learning=lambda: float(self.learning is not None),
        )  # fmt: skip
        self.batcher = Batcher(loaded, observe=self.measures.images.observe)
        self.desk = Desk(self.batcher, limits)
        self.follower = Follower(model, self.batcher)
        self.jobs = Jobs(model, self.follower.catch_up, seconds=limits.learn_seconds)

    @property
    def learning(self) -> int | None:
        """The id of the job that is under way."""
        return next((job.id for job in self.jobs.known.values() if job.state == "learning"), None)

    def close(self) -> None:
        """End every thread and process; what was asked is answered first, an unfinished learning is given up."""
        for part in (self.jobs, self.follower, self.desk, self.batcher):
            part.close()


def create_app(model: Path, *, token: str, limits: Limits | None = None) -> FastAPI:
    """The application that serves the model at `model`; it is one process's.

    Args:
        token: that a client must know to change the model.
        limits: on requests; the defaults where left out.

    Raises:
        FileNotFoundError, ValueError: as `Learner.load`.
    """
    service = Service(model, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="Lamella", version=lamella.__version__, lifespan=lifespan,
        description="A vision model that keeps learning: predict, and teach it new classes.",
    )  # fmt: skip
    app.state.service = service
    _add_reading(app, service)
    _add_predicting(app, service)
    _add_learning(app, service)
    _add_faults(app)
    app.add_middleware(Gate, token=token, limits=service.limits)
    app.add_middleware(Measured, measures=service.measures)
    return app


def _add_reading(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": OWN_ONLY})

    @app.get("/health")
    def health() -> Health:
        """Whether it serves, and what."""
        learner, version = service.batcher.loaded
        return Health(
            status=service.follower.problem or "ok", version=version, classes=len(learner.class_names),
            tasks=len(learner.tasks), method=learner.name, backbone=learner.backbone.name,
            learning=service.learning, waiting=service.desk.waiting,
        )  # fmt: skip

    @app.get("/classes")
    def classes() -> list[ClassRow]:
        """The classes that the model knows."""
        return ClassRow.all_of(service.batcher.loaded.learner)

    @app.get("/tasks")
    def tasks() -> list[TaskRow]:
        """The tasks that the model has learned, oldest first."""
        return TaskRow.all_of(service.batcher.loaded.learner)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(service.measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_predicting(app: FastAPI, service: Service) -> None:
    @app.post("/predict", responses=FAULTS)
    async def predict(
        images: Annotated[list[UploadFile], File(description="one or more image files")],
        top: Annotated[int, Query(ge=1, description="classes to name for each")] = 5,
    ) -> Predictions:
        """Name the class of each image; all are answered by one version of the model, or none is."""
        answer = await service.desk.predict(images, top)
        names = [file.filename or "image" for file in images]
        rows = [Predicted.of(name, p) for name, p in zip(names, answer.predictions, strict=True)]
        return Predictions(version=answer.version, predictions=rows)


def _add_learning(app: FastAPI, service: Service) -> None:
    refusals = {**FAULTS, 401: {"model": Problem, "description": "the token is missing or wrong"},
                429: {"model": Problem, "description": "a learning is under way"},
                507: {"model": Problem, "description": "the disk is full"}}  # fmt: skip
    documented = Depends(HTTPBearer(auto_error=False, description="the token of `lamella serve`"))  # the gate checks it

    @app.post("/learn", status_code=202, responses=refusals, dependencies=[documented])
    async def learn(
        archive: Annotated[UploadFile, File(description="a zip of CLASS/*.jpg")],
        name: Annotated[
            str, Form(max_length=NAME_LENGTH, description="of the task; the archive's where left out")
        ] = "",
    ) -> Job:
        """Teach the model the classes of an archive, in the background; see /jobs/{id}."""
        if not service.jobs.claim():
            fault = f"job {service.learning} is learning; try again when it is done"
            raise HTTPException(429, fault, {"Retry-After": "10"})
        folder = Path(tempfile.mkdtemp(prefix="lamella-learn-"))
        try:
            found = await run_in_threadpool(unpack, archive.file, folder, service.limits)
            task = _printable(name) or _printable(Path(archive.filename or "").stem) or "uploaded"
            return replace(service.jobs.start(folder, task, found.images, list(found.ignored)))
        except BaseException:
            rmtree(folder, ignore_errors=True)
            service.jobs.release()
            raise

    absent: dict[int | str, dict[str, Any]] = {
        404: {"model": Problem, "description": "there is no such job"},
        422: FAULTS[422],
    }

    @app.get("/jobs/{id}", responses=absent)
    def job(id: int) -> Job:
        """How far a learning is."""
        if id not in service.jobs.known:
            raise HTTPException(404, f"there is no job {id}; POST /learn starts one and returns its id")
        return replace(service.jobs.known[id])


def _printable(name: str) -> str:
    return "".join(c for c in name if c.isprintable()).strip()[:NAME_LENGTH]


def _add_faults(app: FastAPI) -> None:
    """One line for every fault."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, e['loc'][1:])) or 'request'}: {e['msg']}" for e in error.errors()]
        return JSONResponse({"detail": "; ".join(faults)}, 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "this failed in the server, whose log says why; nothing was changed"}, 500)
