"""The metrics that Prometheus reads at `/metrics`."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MeasuredRequests", "Measures"]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """The metrics of one server.

    Args:
        noun: what one sample is called, such as "image".
        version: returns the version of the model in use.
        waiting: returns how many samples wait for their prediction.
        learning: returns 1 while a task is learned, else 0.
        drift: returns 1 once the drift alarm is raised, else 0; None where there is none.
    """

    def __init__(
        self,
        *,
        noun: str,
        version: Callable[[], float],
        waiting: Callable[[], float],
        learning: Callable[[], float],
        drift: Callable[[], float] | None,
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("lamella_requests", "Requests answered", ["route", "status"], registry=registry)
        self.seconds = Histogram("lamella_request_seconds", "Until the answer", ["route"], registry=registry)
        self.batches = Histogram(
            f"lamella_batch_{noun}s", f"{noun.capitalize()}s answered together", buckets=BATCHES, registry=registry
        )
        for name, text, value in (
            ("version", "Version of the model in use", version),
            (f"waiting_{noun}s", f"{noun.capitalize()}s whose prediction is awaited", waiting),
            ("learning", "1 while a task is learned, else 0", learning),
            ("drift", f"1 once {noun}s look unlike what was learned, else 0", drift),
        ):
            if value is not None:
                Gauge(f"lamella_{name}", text, registry=registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            route: the pattern of the route, not the path, so that clients cannot create series without limit.
            status: the HTTP status of the answer.
            seconds: the time until the answer.
        """
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def page(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class MeasuredRequests:
    """Middleware that counts every request.

    Args:
        app: the application that answers the requests.
        measures: the metrics to update.
    """

    def __init__(self, app: ASGIApp, *, measures: Measures) -> None:
        self.app, self.measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.measures.answered(route, status, time.monotonic() - started)
