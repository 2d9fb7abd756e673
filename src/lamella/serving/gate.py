"""Checks on a request before its body is read: its origin, its token, its size, and its duration.

FastAPI reads the body of a request before it checks the dependencies of a route, so a client without the token could
fill the disk. These checks therefore run as middleware, before FastAPI.
"""

import asyncio
from collections.abc import Collection
from hashlib import sha256
from hmac import compare_digest
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lamella.serving.budget import Budget, Share
from lamella.serving.faults import problem
from lamella.serving.limits import MB, Limits

__all__ = ["RequestGate"]

READING = ("GET", "HEAD", "OPTIONS")
OPEN = ("/predict", "/v1/chat/completions", "/v1/completions")
"""The POST routes that change nothing. Every other one needs the token, also a route that is added later."""


class RequestGate:
    """Middleware that refuses requests which may not reach the application.

    Args:
        app: the application that receives the other requests.
        token: the secret that a client must send to change the model.
        limits: the bounds on the size and the duration of an upload.
        hosts: the host names that clients may use for this server; empty allows every name.
    """

    def __init__(self, app: ASGIApp, *, token: str, limits: Limits, hosts: Collection[str] = ()) -> None:
        self.app = app
        self.limits = limits
        self.hosts = frozenset(hosts)
        self.digest = _digest(token)
        self.predicting = Budget(limits.predict_mb_together, "MB")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, is_open = Headers(scope=scope), scope["path"] in OPEN

        async def refuse(error: HTTPException) -> None:
            await problem(scope["path"], error)(scope, receive, send)

        if self.hosts and _host_name(headers.get("host", "")) not in self.hosts:
            return await refuse(_wrong_host(headers.get("host", "")))
        if scope["method"] in READING:
            return await self.app(scope, receive, send)
        if _is_from_elsewhere(headers):
            fault = "a page of another site sent this request; use the page of this server, or a program"
            return await refuse(HTTPException(403, fault))
        limit = int((self.limits.predict_mb if is_open else self.limits.learn_mb) * MB)
        if not is_open and not self._knows_token(headers.get("authorization", "")):
            fault = "this request changes the model and needs the token; send the header 'Authorization: Bearer TOKEN'"
            return await refuse(HTTPException(401, fault, {"WWW-Authenticate": "Bearer"}))
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            return await refuse(HTTPException(413, _too_large(limit)))
        if not is_open:
            return await self.app(scope, self._bounded(receive, limit, self.limits.upload_seconds), send)
        with self.predicting.share() as share:
            # The body lies in memory or in a temporary file until the request is answered.
            await self.app(scope, self._bounded(receive, limit, self.limits.predict_upload_seconds, share), send)

    def _knows_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        # Digests have equal length, and comparing them takes equally long wherever they differ.
        return compare_digest(_digest(given.strip()), self.digest) and scheme.lower() == "bearer"

    def _bounded(self, receive: Receive, limit: int, seconds: float, share: Share | None = None) -> Receive:
        """Wrap `receive` so that it raises when this body or all together are too large, or when it takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        received, complete = 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # the next message tells that the client has disconnected; it may come at any later time
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - loop.time())
            except TimeoutError:
                fault = f"the request took longer than {seconds:g} s to arrive"
                raise HTTPException(408, fault) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                raise HTTPException(413, _too_large(limit))
            if share is not None:
                share.take(len(message.get("body", b"")) / MB)
            return message

        return bounded


def _host_name(address: str) -> str:
    """Return the host name of "name:port", in lower case and without brackets.

    >>> [_host_name(a) for a in ("LocalHost:8000", "[::1]:8000", "[")]
    ['localhost', '::1', '']
    """
    try:
        return urlsplit(f"//{address}").hostname or ""
    except ValueError:
        return ""


def _wrong_host(host: str) -> HTTPException:
    """Refuse a request for another host name.

    A site can point its own name at the address of this server; a browser would then treat this server as that site.
    """
    name = _host_name(host)
    fault = f"this server does not answer to the name '{name}'; open the address it printed, or add --allow-host {name}"
    return HTTPException(421, fault)


def _is_from_elsewhere(headers: Headers) -> bool:
    """Whether a browser sent the request for a page of another site. Programs send no such headers."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", "")


def _too_large(limit: int) -> str:
    return f"the request is larger than the {round(limit / MB, 1):g} MB that are allowed; send less at once"


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()
