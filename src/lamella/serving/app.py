"""The HTTP application and its routes for reading and predicting."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from lamella.common.files import DISK_FULL
from lamella.common.version import __version__
from lamella.serving.completions import add_completions
from lamella.serving.faults import problem
from lamella.serving.gate import RequestGate
from lamella.serving.learning import add_learning
from lamella.serving.limits import Limits
from lamella.serving.measures import MeasuredRequests
from lamella.serving.schemas import DISK, ELSEWHERE, FAULTS, ClassRow, Health, Predicted, Predictions, TaskRow
from lamella.serving.service import Service
from lamella.serving.versions import add_versions

__all__ = ["create_app"]

PAGE = Path(__file__).parent / "page.html"
PAGE_OF_ANSWERS = PAGE.with_name("page_of_answers.html")
KIND = 'data-samples="image"'
"""Where the page says what its server takes."""
OWN_ONLY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
"""The content security policy: the page loads nothing from other servers, and no other page may frame it."""


def create_app(
    model: Path,
    *,
    token: str,
    limits: Limits | None = None,
    hosts: Collection[str] = (),
    device: str | None = None,
    trusted: bool = True,
) -> FastAPI:
    """Create the application that serves one model. Run it in a single process.

    Args:
        model: the model's folder.
        token: the secret that a client must send to change the model.
        limits: the bounds on requests; the defaults of `Limits` if None.
        hosts: the host names that clients may use for this server; empty allows every name.
        device: what to compute on; None for a GPU if there is one.
        trusted: False for a folder of a stranger; see `Learner.load`.

    Returns:
        The application, with its `Service` under `app.state.service`.

    Raises:
        FileNotFoundError: there is no model at `model`.
        ValueError: the model cannot be read, or a folder that Lamella makes inside it is a symbolic link.
    """
    service = Service(model, limits or Limits(), device, trusted=trusted)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.go_on)
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="Lamella",
        version=__version__,
        lifespan=lifespan,
        responses=ELSEWHERE,
        description=f"A model of {service.kind.noun}s that keeps learning: {service.kind.does}.",
    )
    app.state.service = service
    _add_reading(app, service)
    _add_predicting(app, service)
    add_learning(app, service)
    add_versions(app, service)
    add_completions(app, service)
    _add_faults(app)
    app.add_middleware(RequestGate, token=token, limits=service.limits, hosts=hosts)
    app.add_middleware(MeasuredRequests, measures=service.measures)
    return app


def _add_reading(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        file = PAGE_OF_ANSWERS if service.kind.noun == "answer" else PAGE
        content = file.read_text(encoding="utf-8").replace(KIND, KIND.replace("image", service.kind.noun), 1)
        return HTMLResponse(content, headers={"Content-Security-Policy": OWN_ONLY})

    @app.get("/health")
    def health() -> Health:
        """Report the state of the server and which model it serves."""
        learner, version, _ = service.batcher.loaded
        return Health(
            status=service.follower.problem or "ok",
            version=version,
            classes=len(learner.class_names),
            tasks=len(learner.tasks),
            method=learner.name,
            backbone=learner.backbone.name,
            learning=service.jobs.learning,
            waiting=service.desk.waiting,
            samples=service.kind.noun,
            drift=service.drift.state(),
        )

    @app.get("/classes")
    def classes() -> list[ClassRow]:
        """List the classes that the model knows."""
        return ClassRow.all_of(service.batcher.loaded.learner)

    @app.get("/tasks")
    def tasks() -> list[TaskRow]:
        """List the tasks that the model has learned, oldest first."""
        return TaskRow.all_of(service.batcher.loaded.learner)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Return counts and times in the text format of Prometheus."""
        return Response(service.measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_predicting(app: FastAPI, service: Service) -> None:
    noun = service.kind.noun

    body = {"requestBody": service.kind.body}

    @app.post("/predict", include_in_schema=noun != "answer", responses=FAULTS | DISK, openapi_extra=body)
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, description=f"how many classes to name for each {noun}")] = 5,
    ) -> Predictions:
        """Predict the class of each sample. One version of the model answers for all samples of a request."""
        names, answer = await service.desk.predict(request, top)
        rows = [Predicted.of(name, p) for name, p in zip(names, answer.predictions, strict=True)]
        return Predictions(version=answer.version, predictions=rows)


def _add_faults(app: FastAPI) -> None:
    """Answer every error with one line."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        # Large bodies go to temporary files while they arrive, and FastAPI calls whatever fails then a bad body.
        if isinstance(cause := error.__cause__, OSError) and cause.errno in DISK_FULL:
            full = "the disk of the server is full; free some space, or send less"
            return problem(request.url.path, HTTPException(507, full))
        return problem(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [f"{'.'.join(map(str, e['loc'][1:])) or 'request'}: {e['msg']}" for e in error.errors()]
        return problem(request.url.path, HTTPException(422, "; ".join(faults)))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        fault = "the request failed in the server; the log of the server says why, and nothing was changed"
        return problem(request.url.path, HTTPException(500, fault))
