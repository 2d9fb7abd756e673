"""A server of answers: what a language model writes to the prompts of several clients at once, and what it learns."""

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fastapi import HTTPException, Request
from fastapi import UploadFile as Upload

from lamella.backbones.generating import Generating, Hear, Written, go_on, keys_of_prompts
from lamella.backbones.language_model import language_model
from lamella.data.answer_tokens import AnswerTokens
from lamella.learner.learner import Learner
from lamella.serving.asked import USUAL_TOKENS, Asked
from lamella.serving.faults import Refusal
from lamella.serving.kind import Columns, Named, Unpacked, refused_kind
from lamella.serving.limits import Limits
from lamella.serving.sent import TABLES, read_answers
from lamella.serving.tables import refuse_others, take_table

__all__ = ["AnswerKind", "Prompts"]

LEARNS = "learns a .csv, .tsv or .jsonl table of prompt and response, messages, or text"
HOW = "POST /v1/chat/completions, or /v1/completions"


@dataclass(frozen=True)
class Prompts:
    """The prompts of one request as the batcher takes them.

    Attributes:
        rows: the token ids of each.
        keys: what the draws of each are named by.
        how: how answers are written.
        base: the checksum of the weights and the tokenizer that the ids are for.
        hear: told what is written to each prompt; its answer says whether that goes on.
    """

    rows: Sequence[list[int]]
    keys: Sequence[str]
    how: Generating
    base: str
    hear: Hear = lambda place, written: True

    def __len__(self) -> int:
        return len(self.rows)


class AnswerKind:
    """Answers; a `Kind`.

    Args:
        limits: the bounds on prompts.
    """

    noun = "answer"
    together = 16
    archive = "a .csv, .tsv or .jsonl table of prompts and responses, of messages, or of texts"
    does = "conversations and texts to go on with, by the interface of OpenAI, and teach it new answers"
    body: dict[str, Any] = {"required": False, "content": {}}  # noqa: RUF012

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most, self.waiting = limits.prompts, limits.waiting_prompts
        self._encoding = threading.Lock()
        self._tokens: tuple[str, AnswerTokens] | None = None

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Sequence[Named]]:
        """Refuse what a model of classes takes."""
        raise refused_kind("conversations and texts to go on with", f"it writes answers and knows no classes; {HOW}")
        yield []

    async def prepare(self, samples: Sequence[Named], learner: Learner) -> Prompts:
        """There is nothing to prepare, since nothing is read."""
        raise NotImplementedError

    def encode(self, asked: Asked, learner: Learner) -> Prompts:
        """Return the prompts of a request as the batcher takes them. Several threads may call this.

        Raises:
            HTTPException: 400, the chat template refuses a conversation, or there are too many tokens.
        """
        model = language_model(learner.backbone.model, "serving answers")
        base = learner.backbone.weights_sha256
        with self._encoding:  # a tokenizer is no thing of several threads, and the model's is in use
            if self._tokens is None or self._tokens[0] != base:
                self._tokens = base, deepcopy(cast(AnswerTokens, learner.backbone.transform))
            tokens = self._tokens[1]
            try:
                rows = (
                    tokens.prompts(asked.prompts, room=1 << 40)
                    if asked.is_chat
                    else [tokens.continued(prompt.turns[0].content) for prompt in asked.prompts]
                )
            except ValueError as error:
                raise Refusal(400, str(error), param="messages" if asked.is_chat else "prompt") from None
        longest = max(map(len, rows))
        room = self.limits.batch_tokens - longest
        own = model.longest_answer(longest)
        wanted = _wanted(asked, longest, room if own is None else min(own, room))
        return Prompts(rows, keys_of_prompts(asked.prompts), asked.how(wanted), base)

    def predict(self, learner: Learner, requests: Sequence[Prompts], top: int) -> list[Written]:
        """Answer the prompts of all requests; those that are written in the same way are written together."""
        if {request.base for request in requests} != {learner.backbone.weights_sha256}:
            raise ValueError("another model has taken the folder meanwhile; ask again")
        method = learner.method.eval().to(learner.fit().device)
        found: dict[int, list[Written]] = {}
        for how in dict.fromkeys(request.how for request in requests):
            group = [i for i, request in enumerate(requests) if request.how == how]
            places = [(requests[i], place) for i in group for place in range(len(requests[i]))]

            def hear(number: int, written: Written, places: Sequence[tuple[Prompts, int]] = places) -> bool:
                request, place = places[number]
                return request.hear(place, written)

            written = iter(
                go_on(
                    method.backbone,
                    [request.rows[place] for request, place in places],
                    [request.keys[place] for request, place in places],
                    how,
                    acting=method.acting,
                    hear=hear,
                    size=self.limits.batch_tokens,
                )
            )
            found |= {i: [next(written) for _ in requests[i].rows] for i in group}
        return [one for i in range(len(requests)) for one in found[i]]

    def unpack(self, upload: Upload, folder: Path, columns: Columns) -> Unpacked:
        """Store a table."""
        if any(columns):
            raise HTTPException(422, f"text and label name columns of labelled texts, and this model {LEARNS}")
        ending = Path(upload.filename or "").suffix.lower()
        if ending not in TABLES:
            refuse_others(ending)
            raise HTTPException(415, f"this model {LEARNS}, and '{upload.filename}' is none")
        return take_table(upload, folder, read_answers, self.limits)

    def close(self) -> None:
        """There is no thread to end."""


def _wanted(asked: Asked, longest: int, room: int) -> int:
    """The largest number of tokens of the answers of a request.

    Args:
        asked: the request.
        longest: the number of tokens of its longest prompt.
        room: how many can be written to that at most.

    Raises:
        Refusal: these are less than were asked for.
    """
    wanted = asked.max_tokens or max(min(USUAL_TOKENS, room), 1)
    if wanted > room:
        raise Refusal(
            400,
            f"the prompt has {longest:,} tokens, and max_tokens is {wanted:,}; to such a prompt this model writes at "
            f"most {max(room, 0):,}, so send less or ask for fewer",
            param="messages" if asked.is_chat else "prompt",
            code="context_length_exceeded",
        )
    return wanted
