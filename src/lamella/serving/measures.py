"""What Prometheus reads at `/metrics`."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Measured", "Measures"]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """Counts of one server.

    Args:
        version: of the model in use. waiting: images whose prediction is awaited. learning: whether a task is learned.
    """

    def __init__(
        self, *, version: Callable[[], float], waiting: Callable[[], float], learning: Callable[[], float]
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("lamella_requests", "Requests answered", ["route", "status"], registry=registry)
        self.seconds = Histogram("lamella_request_seconds", "Until the answer", ["route"], registry=registry)
        self.images = Histogram("lamella_batch_images", "Images per batch", buckets=BATCHES, registry=registry)
        for name, text, value in (
            ("version", "Version of the model in use", version),
            ("waiting_images", "Images whose prediction is awaited", waiting),
            ("learning", "1 while a task is learned, else 0", learning),
        ):
            Gauge(f"lamella_{name}", text, registry=registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is the pattern, so that strangers cannot make series without end."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def page(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """Counts every request to the application within."""

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
