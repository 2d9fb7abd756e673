"""`lamella serve`: serve a model over HTTP, which can learn while it answers."""

import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Annotated

import typer

from lamella.cli.arguments import Device, Model, Untrusted
from lamella.cli.output import say
from lamella.common.words import many

__all__ = ["serve"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="LAMELLA_TOKEN",
            help="What a client must send to change the model.",
            show_default="a new one",
            metavar="TOKEN",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another host name of this server, such as that of a proxy; repeatable.", metavar="NAME"),
    ] = None,
    max_upload: Annotated[float, typer.Option(min=0.001, help="MB of an archive to learn from.", metavar="MB")] = 512,
    max_files: Annotated[int, typer.Option(min=1, help="Files in an archive.")] = 5000,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Of one image.", metavar="N")] = 50,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts in a request.")] = 256,
    max_characters: Annotated[int, typer.Option(min=1, help="Of one text in a request.")] = 20_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of the texts or answers that are computed together.")] = 8192,
    max_table: Annotated[float, typer.Option(min=0.001, help="MB of a table to learn from.", metavar="MB")] = 32,
    max_lines: Annotated[int, typer.Option(min=1, help="Lines of a table.")] = 200_000,
    device: Device = None,
    untrusted: Untrusted = False,
) -> None:
    """Serve a model: predictions, or answers by the interface of OpenAI; it can learn more while it runs.

    The printed address shows a page for the browser; /docs describes all requests.
    """
    loopback = is_loopback(host)
    if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
        raise ValueError("a token must be one or more printable ASCII characters without spaces; choose another one")
    if token is None and not loopback:
        raise ValueError(
            f"'{host}' can be reached from other machines, so a token is needed: set LAMELLA_TOKEN or give --token"
        )
    try:
        import uvicorn

        from lamella.serving.app import create_app
        from lamella.serving.connections import IdleTimeout
    except ImportError as error:
        raise ImportError(f"serving needs '{error.name}': pip install 'lamella[serve]'") from error
    from lamella.serving.limits import Limits

    listening = listen(host, port)
    key = token or secrets.token_urlsafe(24)
    limits = Limits(
        learn_mb=max_upload,
        unpacked_mb=4 * max_upload,
        files=max_files,
        megapixels=max_megapixels,
        texts=max_texts,
        characters=max_characters,
        batch_tokens=max_tokens,
        table_mb=max_table,
        table_lines=max_lines,
    )
    names = known_as(host, allow_host or [])
    app = create_app(model, token=key, limits=limits, hosts=names, device=device, trusted=not untrusted)
    learner, version, _ = app.state.service.batcher.loaded
    answers = learner.backbone.transform.noun == "answer"
    shown = f"[{host}]" if ":" in host else host
    # The browser does not send what follows "#". A token that the user chose is not shown, because terminals may be
    # logged.
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    knows = many(len(learner.tasks), "task") if answers else many(len(learner.class_names), "class", "es")
    say(f"{model}, version {version}, {knows}: {address}{'' if token else f'#token={key}'}")
    if answers:
        say(f"clients of OpenAI's interface: base_url {address}v1")
    config = uvicorn.Config(
        app,
        http=IdleTimeout,
        log_level="warning",
        limit_concurrency=256,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    )
    uvicorn.Server(config).run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. The only name that is recognised is "localhost"."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def known_as(host: str, others: Sequence[str]) -> set[str]:
    """Return the host names that clients may use. Empty allows all: if other machines reach it and no name is given.

    >>> sorted(known_as("127.0.0.1", ["Lamella.example"])), known_as("0.0.0.0", [])
    (['127.0.0.1', '::1', 'lamella.example', 'localhost'], set())
    """
    given = {name.lower() for name in others}
    if is_loopback(host):
        return {*LOOPBACK, host, *given}
    return {host, *given} if given else set()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ValueError: this machine has no such address, or another program listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror
        raise ValueError(f"cannot listen on {host}, port {port} ({why}); choose another --host or --port") from error
