"""The routes of OpenAI's interface: which model there is, answers to conversations, and texts that are gone on with."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from lamella.backbones.generating import Written
from lamella.serving.answers import AnswerKind, Prompts
from lamella.serving.asked import Asked, body_of, check_model, read_chat, read_completion
from lamella.serving.faults import OPENAI, Refusal, told
from lamella.serving.forms import JSON, content_of, media_type
from lamella.serving.hearing import Heard, listen

if TYPE_CHECKING:
    from lamella.serving.service import Service

__all__ = ["add_completions"]

EVENTS = "text/event-stream"
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
LEFT = 499
"""The status of a request whose client has left, which nobody reads."""
ANSWERS: Mapping[int | str, dict[str, Any]] = {
    200: {"description": "the answer, whole or in events", "content": {JSON: {}, EVENTS: {}}},
}
FAULTS: Mapping[int | str, dict[str, Any]] = {
    400: {"description": "the body, or a field that the message names, is not as it should be"},
    403: {"description": "a page of another site sent the request"},
    404: {"description": "there is no such model"},
    408: {"description": "the request took too long to arrive"},
    413: {"description": "too many bytes, messages, prompts or characters"},
    415: {"description": "the body is not called JSON"},
    503: {"description": "too many requests, or no answer in time; try again later"},
}
UNCERTAIN = "\N{REPLACEMENT CHARACTER}"
"""What the first bytes of a character are shown as, until the others follow."""
Read = Callable[[bytes, str, Any], Asked]
Value = TypeVar("Value")


def add_completions(app: FastAPI, service: "Service") -> None:
    """Add the routes of OpenAI's interface, or what a model of classes says to those who ask for them.

    Args:
        app: the application that receives the routes.
        service: what runs behind the routes.
    """
    kind, name = service.kind, service.model.resolve().name
    if not isinstance(kind, AnswerKind):
        _add_refusal(app, f"this model names classes of {kind.noun}s and writes nothing; use POST /predict")
        return

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """List the only model there is."""
        return {"object": "list", "data": [_model(name, service)]}

    @app.get("/v1/models/{id}", responses={404: FAULTS[404]})
    def model(id: str) -> dict[str, Any]:
        """Describe the model."""
        check_model(id, name)
        return _model(name, service)

    async def answer(request: Request, read: Read) -> Response:
        asked = read(await _body(request), name, service.limits)
        prompts = await run_in_threadpool(kind.encode, asked, service.batcher.loaded.learner)
        heard = listen(prompts, service.desk, service.limits.answer_seconds)
        reply = _Reply(name, asked, prompts)
        if asked.stream:
            first = await _unless_left(request, anext(heard))
            events = reply.events(first, heard)
            return StreamingResponse(events, media_type=EVENTS, headers={"Cache-Control": "no-store"})
        return JSONResponse(reply.whole(await _unless_left(request, _all_of(heard))))

    @app.post(CHAT, responses={**ANSWERS, **FAULTS}, openapi_extra=_body_of("chat"))
    async def chat(request: Request) -> Response:
        """Answer a conversation, at once or in events while the answer is written."""
        return await answer(request, read_chat)

    @app.post(COMPLETION, responses={**ANSWERS, **FAULTS}, openapi_extra=_body_of("completion"))
    async def completion(request: Request) -> Response:
        """Go on with texts, at once or in events while they are written."""
        return await answer(request, read_completion)

    _add_refusal(app, f"this server has GET /v1/models, POST {CHAT} and POST {COMPLETION}, and nothing else below /v1")


def _add_refusal(app: FastAPI, fault: str) -> None:
    @app.api_route(OPENAI + "{path:path}", methods=["GET", "POST"], include_in_schema=False)
    def absent(path: str) -> None:
        raise HTTPException(404, fault)


def _model(name: str, service: "Service") -> dict[str, Any]:
    made = service.batcher.loaded.manifest.get("made", "")
    try:
        created = int(time.mktime(time.strptime(made, "%Y-%m-%dT%H:%M:%S")))
    except (OverflowError, ValueError):
        created = 0
    return {"id": name, "object": "model", "created": created, "owned_by": "lamella"}


def _body_of(kind: Literal["chat", "completion"]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {JSON: {"schema": body_of(kind)}}}}


async def _body(request: Request) -> bytes:
    if media_type(request) != JSON:
        raise Refusal(415, f"the body must be JSON and called that; send the header 'Content-Type: {JSON}'")
    return await content_of(request)


async def _unless_left(request: Request, work: Awaitable[Value]) -> Value:
    """Wait for work, and end it where the client has left before."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HTTPException(LEFT, "the client has left")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _all_of(heard: AsyncGenerator[Heard]) -> dict[int, Heard]:
    return {one.place: one async for one in heard}


class _Reply:
    """The form in which one request is answered.

    Args:
        name: what the model is called.
        asked: the request.
        prompts: its prompts.
    """

    def __init__(self, name: str, asked: Asked, prompts: Prompts) -> None:
        self.asked, self.prompts = asked, prompts
        self.head = {
            "id": f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{token_hex(12)}",
            "created": int(time.time()),
            "model": name,
        }

    def whole(self, heard: Mapping[int, Heard]) -> dict[str, Any]:
        """The answer as one object.

        Args:
            heard: by place, the whole answer to each prompt.
        """
        answers = [heard[place] for place in sorted(heard)]
        choices = [self._choice(one.place, one.written.text, one.written.why, delta=False) for one in answers]
        return self._object(choices, answers[0].version) | {"usage": self._usage([one.written for one in answers])}

    async def events(self, first: Heard, rest: AsyncGenerator[Heard]) -> AsyncIterator[str]:
        """The answer in events, of which each holds what was written since the one before."""
        sent = [""] * len(self.prompts)
        whole: dict[int, Written] = {}
        usage = {"usage": None} if self.asked.count_in_stream else {}
        try:
            if self.asked.is_chat:
                yield _event(self._object([self._choice(0, "", "", role="assistant")], first.version) | usage)
            async for place, written, version in _with_first(first, rest):
                text = written.text if written.why else _settled(written.text, self.asked.stop)
                if text.startswith(sent[place]) and len(text) > len(sent[place]):
                    choice = self._choice(place, text[len(sent[place]) :], "")
                    yield _event(self._object([choice], version) | usage)
                    sent[place] = text
                if written.why:
                    whole[place] = written
                    yield _event(self._object([self._choice(place, "", written.why)], version) | usage)
            if usage:
                yield _event(self._object([], first.version) | {"usage": self._usage(list(whole.values()))})
            yield "data: [DONE]\n\n"
        except HTTPException as error:  # the status was sent before
            yield f"event: error\n{_event(told(OPENAI, error))}"
        finally:
            await rest.aclose()

    def _object(self, choices: Sequence[Mapping[str, Any]], version: int) -> dict[str, Any]:
        chunk = ".chunk" if self.asked.stream else ""
        kind = f"chat.completion{chunk}" if self.asked.is_chat else "text_completion"
        return self.head | {"object": kind, "system_fingerprint": f"version-{version}", "choices": list(choices)}

    def _choice(self, place: int, text: str, why: str, *, delta: bool = True, role: str = "") -> dict[str, Any]:
        ends: dict[str, Any] = {"index": place, "logprobs": None, "finish_reason": why or None}
        if not self.asked.is_chat:
            return ends | {"text": text}
        if not delta:
            return ends | {"message": {"role": "assistant", "content": text, "refusal": None}}
        return ends | {"delta": ({"role": role} if role else {}) | ({"content": text} if text or role else {})}

    def _usage(self, written: Sequence[Written]) -> dict[str, int]:
        asked, answered = sum(map(len, self.prompts.rows)), sum(one.tokens for one in written)
        return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


async def _with_first(first: Heard, rest: AsyncGenerator[Heard]) -> AsyncIterator[Heard]:
    yield first
    async for heard in rest:
        yield heard


def _settled(text: str, stop: Sequence[str]) -> str:
    """Return the part of a text that stays as it is, whatever follows.

    >>> _settled("caf\\ufffd", []), _settled("one\\n", ["\\n\\n"]), _settled("a\\nb", ["\\n\\n"])
    ('caf', 'one', 'a\\nb')
    """
    text = text.rstrip(UNCERTAIN)  # first, since a character that is not whole yet may go on with a text of `stop`
    open_ = max((k for sign in stop for k in range(1, len(sign)) if text.endswith(sign[:k])), default=0)
    return text[: len(text) - open_].rstrip(UNCERTAIN)


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
