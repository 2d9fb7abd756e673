"""A server of texts: JSON or forms to predict, tables and archives of text files to learn from."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import HTTPException, Request
from fastapi import UploadFile as Upload
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, FailFast, Field, StrictStr, ValidationError, create_model
from starlette.exceptions import HTTPException as StarletteHTTPException

from lamella.common.words import count
from lamella.data.decoding import image_endings
from lamella.data.images import TensorSet
from lamella.data.lengths import of_like_length
from lamella.data.loading import Examples
from lamella.data.samples import Transform
from lamella.data.texts import TextSet, normal_text
from lamella.data.tokens import TokenTransform
from lamella.learner.learner import Learner, Prediction
from lamella.serving.forms import JSON, MULTIPART, content_of, form_of, media_type
from lamella.serving.kind import Columns, Named, Unpacked, refused_kind
from lamella.serving.limits import Limits
from lamella.serving.sent import TABLES, read_table
from lamella.serving.tables import refuse_others, take_table
from lamella.serving.uploads import Packed, unpack

__all__ = ["TextKind"]

HOW = 'send JSON {"texts": ["...", "..."]}, or each one as a field `text` of a form'
BATCH = 64
"""The largest number of texts that are computed at once."""
FEW = 10_000
"""So many characters take less than a millisecond."""
PASS = 32
"""So many tokens take about as long as a pass through a small encoder takes beside its tokens."""


class TextKind:
    """Texts; a `Kind`.

    Args:
        limits: the bounds on texts.
    """

    noun = "text"
    together = 64
    archive = "a .csv, .tsv or .jsonl table of texts and labels, or a zip of CLASS/*.txt"
    does = "predict, and teach it new classes"

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most, self.waiting = limits.texts, limits.waiting_texts
        self._body = _body_model(limits)
        self.body: dict[str, Any] = _described(limits)

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Sequence[Named]]:
        """Read the list `texts` of JSON, or the fields `text` of a form."""
        kind = media_type(request)
        if kind == MULTIPART:
            texts = await self._of_form(request)
        elif kind == JSON:
            texts = await self._of_json(request)
        elif kind.startswith("image/"):
            raise refused_kind("texts", HOW)
        else:
            raise HTTPException(422, f"texts: Field required; {HOW}")
        yield [Named(str(i), self._checked(i, text)) for i, text in enumerate(texts)]

    async def prepare(self, samples: Sequence[Named], learner: Learner) -> list[str]:
        """Return the texts in their usual form."""
        texts = [sample.content for sample in samples]
        if sum(map(len, texts)) < FEW:  # another thread would take longer
            return _in_usual_form(texts)
        return await run_in_threadpool(_in_usual_form, texts)

    def predict(self, learner: Learner, requests: Sequence[list[str]], top: int) -> list[Prediction]:
        """Predict the texts of all requests, in batches of like length."""
        texts = [text for request in requests for text in request]
        found: dict[int, Prediction] = {}
        for positions, batch in _batches(texts, learner.backbone.transform, self.limits.batch_tokens):
            found |= zip(positions, learner.predict(batch, top=top), strict=True)
        return [found[i] for i in range(len(texts))]

    def unpack(self, upload: Upload, folder: Path, columns: Columns) -> Unpacked:
        """Store a table, or unpack a zip of class folders."""
        if (ending := Path(upload.filename or "").suffix.lower()) in TABLES:
            return take_table(upload, folder, lambda file, name: read_table(file, name, *columns), self.limits)
        refuse_others(ending)
        if any(columns):
            raise HTTPException(422, f"text and label name columns of a table, and '{ending}' is none")
        return unpack(upload.file, folder, _packed(), self.limits)

    def close(self) -> None:
        """There is no thread to end."""

    async def _of_form(self, request: Request) -> list[str]:
        try:
            # No character takes more than four bytes, and no file is text.
            async with form_of(request, files=0, fields=self.most, field_bytes=4 * self.limits.characters) as form:
                texts = [str(text) for text in form.getlist("text")]
        except StarletteHTTPException as error:
            if error.detail.startswith("Too many files"):
                raise refused_kind("texts", f"{HOW} (curl -F 'text=<note.txt')") from None
            if error.detail.startswith("Too many fields"):
                raise self._too_many(f"more than {self.most}") from None
            if error.detail.startswith("Part exceeded"):
                raise self._too_long("a text") from None
            raise
        if not texts:
            raise HTTPException(422, f"text: Field required; {HOW}")
        return texts

    async def _of_json(self, request: Request) -> list[str]:
        content = await content_of(request)
        try:
            return self._body.model_validate_json(content).texts  # type: ignore[attr-defined]
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            why = first["msg"].removeprefix("Invalid JSON: ")
            raise HTTPException(400, f"the body of the request is not JSON: {why}")
        if first["type"] == "too_long":
            raise self._too_many(f"more than {self.most}")
        place = ".".join(map(str, first["loc"])) or "request"
        raise HTTPException(422, f"{place}: {first['msg']}; {HOW}")

    def _checked(self, i: int, text: str) -> str:
        if len(text) > self.limits.characters:
            raise self._too_long(f"text {i}")
        if "\0" in text:
            raise HTTPException(422, f"text {i} has a NUL character, which no text has; remove it")
        if not text or text.isspace():
            raise HTTPException(422, f"text {i} is empty; send a text, or leave it out")
        return text

    def _too_many(self, number: str) -> HTTPException:
        return HTTPException(413, f"{number} texts were sent at once; {self.most} are allowed, send the rest later")

    def _too_long(self, which: str) -> HTTPException:
        most = count(self.limits.characters)
        return HTTPException(413, f"{which} has more than the {most} characters that are allowed; send less of it")


def _packed() -> Packed:
    return Packed("text", ".txt", (".txt",), frozenset(image_endings()), _text_file)


def _text_file(path: Path, name: str) -> None:
    """Take any file: what is no text is left out when it is learned, and the job names it."""


def _body_model(limits: Limits) -> type[BaseModel]:
    texts = Annotated[list[StrictStr], FailFast(), Field(min_length=1, max_length=limits.texts)]
    return create_model("Texts", texts=(texts, ...))


def _described(limits: Limits) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": limits.characters}
    texts = {"type": "array", "minItems": 1, "maxItems": limits.texts, "items": text}

    def of(name: str) -> dict[str, Any]:
        return {"schema": {"type": "object", "required": [name], "properties": {name: texts}}}

    return {"required": True, "content": {JSON: of("texts"), MULTIPART: of("text")}}


def _in_usual_form(texts: Sequence[str]) -> list[str]:
    return [normal_text(text) for text in texts]


def _batches(texts: Sequence[str], transform: Transform, tokens: int) -> Iterator[tuple[list[int], Examples]]:
    """Yield the texts in batches, each with the positions of its texts."""
    if not isinstance(transform, TokenTransform):  # what has no tokens needs no padding
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            yield list(range(start, start + len(part))), TextSet.unlabelled(part)
        return
    # One by one, because a tokenizer keeps all tokens of a text, also those beyond the largest length.
    ids = [transform.encode([text])[0].ids for text in texts]
    for batch in of_like_length([len(row) for row in ids], samples=BATCH, size=tokens, pass_costs=PASS):
        yield batch, TensorSet.unlabelled(transform.batch([ids[i] for i in batch]), noun="text")
