"""What clients of OpenAI's interface ask: read field by field, and refused by name where it cannot be had.

A field that would change the answer and is not supported is never ignored. Its neutral value, which changes nothing, is
taken, and so are fields that only say who asks.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from lamella.backbones.generating import Generating
from lamella.data.answers import ASSISTANT, USER, Answer, Turn
from lamella.serving.faults import Refusal
from lamella.serving.limits import Limits

__all__ = ["USUAL_TOKENS", "Asked", "body_of", "check_model", "read_chat", "read_completion"]

USUAL_TOKENS = 128
"""The largest number of tokens of an answer where a request names none, as of `lamella generate`."""
COLDEST = 0.01
"""The lowest temperature at which anything but the likeliest token is drawn, to the precision of logits."""
SHOWN = 60
"""How many characters of a name that a client made up are told back."""
STOPS, STOP_LENGTH = 16, 1000
"""How many texts may end an answer, and how many characters each may have."""
HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Fields that change no answer: who asks, and what OpenAI does beside answering."""
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}
"""By fields that are not supported, the values with which they change nothing; null is one for all."""


class _Open(BaseModel):
    """Knows its fields and keeps the others, to name them."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Part(_Open):
    type: Literal["text"]
    text: str


class _Message(_Open):
    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(fail_fast=True)]


class _StreamOptions(_Open):
    include_usage: bool = False


_Count = Annotated[int, Field(ge=1, lt=10**9)]


class _Common(_Open):
    model: str | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=1e-6, le=1)] | None = None
    stop: str | Annotated[list[StrictStr], Field(fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Chat(_Common):
    messages: Annotated[list[_Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: _Count | None = None


class _Completion(_Common):
    prompt: str | Annotated[list[StrictStr], Field(min_length=1, fail_fast=True)]


def body_of(kind: Literal["chat", "completion"]) -> dict[str, Any]:
    """Return the JSON schema of the body of a request, all in one piece."""
    whole = (_Chat if kind == "chat" else _Completion).model_json_schema()
    named = whole.pop("$defs", {})

    def inlined(schema: Any) -> Any:
        if isinstance(schema, dict):
            if "$ref" in schema:
                return inlined(named[schema["$ref"].rpartition("/")[2]])
            return {key: inlined(value) for key, value in schema.items()}
        return [inlined(value) for value in schema] if isinstance(schema, list) else schema

    return inlined(whole)


@dataclass(frozen=True)
class Asked:
    """What one request asks.

    Attributes:
        prompts: the conversations to answer, or the texts to go on with.
        is_chat: whether they are conversations.
        max_tokens: the largest number of tokens of an answer; None where the request names none.
        temperature: as of `Generating`.
        top_p: as of `Generating`.
        stop: as of `Generating`.
        seed: as of `Generating`; one that nobody knows before, where the request names none; 0 where nothing is drawn.
        stream: whether the answer is sent while it is written.
        count_in_stream: whether the numbers of tokens are sent at the end of a stream.
    """

    prompts: tuple[Answer, ...]
    is_chat: bool
    max_tokens: int | None
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int
    stream: bool
    count_in_stream: bool

    def how(self, max_tokens: int) -> Generating:
        """How answers are written, of so many tokens at most."""
        return Generating(max_tokens, self.temperature, self.top_p, self.stop, self.seed)


def read_chat(content: bytes, name: str, limits: Limits) -> Asked:
    """Read the body of a request for an answer to a conversation.

    Args:
        content: the body.
        name: what the model is called.
        limits: the bounds on it.

    Raises:
        HTTPException: 400, the body or a field is not as it should be; 404, another model is asked for; 413, there are
            too many messages or characters.
    """
    body = _read(_Chat, content)
    _check_left(body)
    if len(body.messages) > limits.texts:
        raise Refusal(413, f"{len(body.messages)} messages were sent, and {limits.texts} are allowed", param="messages")
    turns: list[Turn] = []
    for i, message in enumerate(body.messages):
        place = f"messages.{i}"
        _check_left(message, place)
        parts = [] if isinstance(message.content, str) else message.content
        for part in parts:
            _check_left(part, f"{place}.content")
        text = message.content if isinstance(message.content, str) else "".join(part.text for part in parts)
        turns.append(Turn(message.role, _checked(text, f"{place}.content", limits)))
    if turns[-1].role == ASSISTANT:
        raise Refusal(400, "the last message is an answer already; end with one of the user", param="messages")
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise Refusal(
            400,
            f"max_tokens is {body.max_tokens} and max_completion_tokens {body.max_completion_tokens}, which are two "
            "names of one number; give one of them",
            param="max_tokens",
        )
    return _asked(body, (Answer(tuple(turns)),), name, True, body.max_tokens or body.max_completion_tokens)


def read_completion(content: bytes, name: str, limits: Limits) -> Asked:
    """Read the body of a request to go on with texts; arguments and errors are those of `read_chat`."""
    body = _read(_Completion, content)
    _check_left(body)
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(given) > limits.prompts:
        raise Refusal(413, f"{len(given)} prompts were sent, and {limits.prompts} are allowed at once", param="prompt")
    texts = [_checked(text, "prompt", limits) for text in given]
    return _asked(body, tuple(Answer((Turn(USER, text),)) for text in texts), name, False, body.max_tokens)


def check_model(asked: str, name: str) -> None:
    """Make sure that a client asks for the model that there is.

    Args:
        asked: what it calls the model.
        name: what the model is called.

    Raises:
        Refusal: 404, it asks for another one.
    """
    if asked != name:
        fault = f"there is no model {asked[:SHOWN]!r} here; this server has {name!r}"
        raise Refusal(404, fault, param="model", code="model_not_found")


def _asked(body: _Common, prompts: tuple[Answer, ...], name: str, is_chat: bool, max_tokens: int | None) -> Asked:
    if body.model is not None:
        check_model(body.model, name)
    if body.temperature and body.temperature < COLDEST:
        fault = f"temperature is {body.temperature}; give 0 for the likeliest tokens, or {COLDEST} to 100"
        raise Refusal(400, fault, param="temperature")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > STOPS or any(len(text) > STOP_LENGTH for text in stop):
        raise Refusal(400, f"stop may hold {STOPS} texts of {STOP_LENGTH} characters each; send fewer", param="stop")
    temperature = body.temperature or 0.0
    # Nothing is drawn at temperature 0, and requests that differ in nothing else are written together.
    own = secrets.randbits(31) if temperature else 0
    found = Asked(
        prompts,
        is_chat,
        max_tokens,
        temperature,
        1.0 if body.top_p is None else body.top_p,
        tuple(stop),
        own if body.seed is None else body.seed * bool(temperature),
        bool(body.stream),
        bool(body.stream_options and body.stream_options.include_usage),
    )
    try:
        found.how(1)
    except ValueError as error:
        raise Refusal(400, str(error), param=str(error).partition(" ")[0]) from None
    return found


Body = TypeVar("Body", bound=_Open)


def _read(kind: type[Body], content: bytes) -> Body:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        why = faults[0]["msg"].removeprefix("Invalid JSON: ")
        raise Refusal(400, f"the body of the request is not JSON: {why}")
    # Where a field may have several forms, each says what is wrong; the one that comes furthest is meant.
    first = max(faults, key=lambda fault: (len(fault["loc"]), not fault["type"].endswith("_type")))
    named = [str(key) for key in first["loc"]]
    fields = named[: next((i for i, key in enumerate(named) if i and not key.isdecimal() and key not in KEYS), None)]
    raise Refusal(400, f"{'.'.join(fields) or 'request'}: {first['msg']}", param=fields[0] if fields else None)


KEYS = frozenset((*_Message.model_fields, *_Part.model_fields, *_StreamOptions.model_fields))


def _check_left(body: _Open, place: str = "") -> None:
    """Refuse fields that are not known, but for those that change nothing."""
    for key, value in (body.model_extra or {}).items():
        if value is None or value == [] or (not place and key in HARMLESS) or _is_neutral(key, value):
            continue
        name = f"{place}.{key if key.isidentifier() else ascii(key)}".lstrip(".")[:SHOWN]
        fault = f"{name} is not supported, and could change the answer; leave it out"
        raise Refusal(400, fault, param=name, code="unsupported_parameter")


def _is_neutral(key: str, value: Any) -> bool:
    return any(type(value) is type(known) and value == known for known in NEUTRAL.get(key, ()))


def _checked(text: str, place: str, limits: Limits) -> str:
    if len(text) > limits.characters:
        fault = f"{place} has {len(text):,} characters, and {limits.characters:,} are allowed; send less"
        raise Refusal(413, fault, param=place.partition(".")[0])
    if "\0" in text:
        raise Refusal(400, f"{place} has a NUL character, which no text has; remove it", param=place.partition(".")[0])
    return text
