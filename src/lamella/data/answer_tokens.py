"""From answers to token ids, and the mask of those that a language model learns to write."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lamella.common.words import many
from lamella.data.answers import PLAIN_TEXT, Answer, AnswerSet
from lamella.data.chat import CLOSE, OPEN, ChatTemplate, TemplateError
from lamella.data.samples import CPU, Batch, Samples, View, refuse_augmentation
from lamella.data.tasks import Unreadable
from lamella.data.tokens import MASK, padded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TARGET", "WRITTEN", "AnswerTokens", "FittingAnswers", "Tokens", "before_targets", "fitting", "named"]

TARGET = "target"
"""Name of a batch's tensor (n, tokens) bool that is True for the tokens that a model learns to write."""
WRITTEN = "decoder_input_ids"
"""Name of a batch's tensor (n, tokens) int64 of what a decoder writes, where another network reads the prompt."""
MARKED = re.compile(f"{OPEN}(.*?){CLOSE}|[{OPEN}{CLOSE}]", re.DOTALL)


class Tokens(NamedTuple):
    """The tokens of one answer.

    Attributes:
        ids: of the tokens, at most `max_length`.
        target: whether a model learns to write each; False for all of them where no answer fits whole.
        cut: how many tokens are left out.
        apart: whether what is read and what is written were made tokens of one by one, because one token would span
            both.
    """

    ids: list[int]
    target: list[bool]
    cut: int = 0
    apart: bool = False

    @property
    def last(self) -> range:
        """The places of the tokens of the last answer."""
        end = len(self.target) - self.target[::-1].index(True)
        return range(end - len(list(takewhile(bool, self.target[:end][::-1]))), end)


class AnswerTokens:
    """What a causal language model expects as input; a `Transform`.

    A conversation is written as the model's chat template says. Targets are the tokens of each answer and of what ends
    it, never those of a prompt. What looks like a special token within a turn is encoded as plain text. Where there are
    too many tokens, the first ones are left out, except for the one that begins every text. An answer that does not fit
    whole is no target. A plain text loses its end instead. Padding goes to the right, to the longest of a batch.

    Args:
        tokenizer: of the model.
        chat: how its conversations are written.
        max_length: the largest number of tokens of an answer and what it answers; at least 3.
        pad_id: the id that stands for padding. It is never seen.
    """

    noun = "answer"
    padding_side = "left"
    """Where prompts are padded that a model goes on with."""

    def __init__(self, tokenizer: "Tokenizer", chat: ChatTemplate, *, max_length: int, pad_id: int = 0) -> None:
        if max_length < 3:
            raise ValueError(f"max_length = {max_length} leaves no room for an answer; give 3 tokens or more")
        self.max_length = max_length
        self.pad_id = pad_id
        self.chat = chat
        self.tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._of_plain_text = type(tokenizer).from_str(tokenizer.to_str())
        self._begin = self.ids_of(chat.begin)

    def view(
        self,
        device: torch.device = CPU,
        augmentation: Any = None,
        n: int = 0,
        generator: torch.Generator | None = None,
    ) -> View:
        """What turns answers into a batch of token ids and targets. There is no augmentation; see `Transform.view`."""
        refuse_augmentation(augmentation, self.noun)

        def view(answers: list[Answer], index: Tensor) -> Batch:
            return self.batch([self._fitting(answer) for answer in answers]).to(device)

        return view

    def encode(self, answer: Answer) -> Tokens:
        """The tokens of an answer and of what it answers.

        Raises:
            ValueError: the chat template refuses the conversation; the message names its place.
        """
        with named(answer):
            pieces = [piece for piece in self.chat.pieces(answer.turns) if piece.text]
        parts, apart = self._joined([piece.text for piece in pieces])
        ids = [i for part in parts for i in part]
        target = [piece.is_target for piece, part in zip(pieces, parts, strict=True) for _ in part]
        target[0] = False  # nothing stands before it from which it could be told
        return self._shortened(Tokens(ids, target, apart=apart), plain=answer.turns[0].role == PLAIN_TEXT)

    def ids_of(self, text: str, *, first: bool = True) -> list[int]:
        """The ids of a rendered text, in which what is marked is plain text, and special tokens are what they are.

        Args:
            text: the text, or a part of one.
            first: whether it is the beginning of the whole; some tokenizers put a blank before that.

        Raises:
            ValueError: the tokenizer makes a special token of plain text.
        """
        parts = MARKED.split(text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            if part:
                found = self._plainly(part, number % 2 == 1, first and number == 0)
                special = self.tokenizer.token_to_id(part) if number % 2 else None
                if special in found:  # T5's has it among the pieces of texts; in two parts it is none
                    found = self._plainly(part[:1], True, False) + self._plainly(part[1:], True, False)
                if special in found:
                    raise ValueError(f"the tokenizer takes the text {part!r} for a special token; use another model")
                ids += found
        return ids

    @property
    def unknown_id(self) -> int | None:
        """The id that stands for what the tokenizer does not know; None where it knows every text."""
        token = getattr(self.tokenizer.model, "unk_token", None)
        return self.tokenizer.token_to_id(token) if isinstance(token, str) else None

    def lengths(self, raw: Sequence[Answer]) -> Tensor:
        """(n,) the number of tokens of each answer and what it answers."""
        return torch.tensor([max(len(self.encode(answer).ids), 1) for answer in raw], dtype=torch.int64)

    def batch(self, rows: Sequence[Tokens]) -> Batch:
        """Tokens of any lengths, padded to one length."""
        found = padded([row.ids for row in rows], self.pad_id)
        target = torch.zeros_like(found["attention_mask"])
        for i, row in enumerate(rows):
            target[i, : len(row.target)] = torch.tensor(row.target)
        return Batch({**found, TARGET: target})

    def of_one_prompt(self, answers: Sequence[Answer]) -> list[Tokens]:
        """The tokens of several answers to one prompt, of which all have what the longest of them leaves room for.

        Raises:
            ValueError: an answer does not fit, or the chat template refuses the conversation.
        """
        rows = [self._fitting(answer) for answer in answers]
        most = max(row.cut for row in rows)
        return [self._without(row, most - row.cut) for row in rows]

    def read_once(self, rows: Sequence[Tokens]) -> tuple[list[int], list[Tokens]]:
        """Part several answers to one prompt into what is read once, and what a model then reads of each.

        The token before the first answer's is among the latter, because it is what tells that answer's first one.

        Args:
            rows: the tokens of each answer, as `of_one_prompt` makes them.

        Returns:
            The ids of what is read once, which may be none; and the tokens behind them of each answer.
        """
        alike = len(list(takewhile(lambda ids: len(set(ids)) == 1, zip(*(row.ids for row in rows), strict=False))))
        shared = min(alike, min(row.last.start for row in rows) - 1)
        return rows[0].ids[:shared], [Tokens(row.ids[shared:], row.target[shared:]) for row in rows]

    def prompts(self, answers: Sequence[Answer], room: int) -> list[list[int]]:
        """The ids that a model goes on with to answer each conversation; its beginning is cut where it is too long.

        Args:
            answers: the conversations, whose last answers are not read.
            room: the largest number of tokens.

        Raises:
            ValueError: the chat template refuses a conversation; the message names its place.
        """
        return [self._last(self._whole_prompt(answer), room) for answer in answers]

    def continued(self, text: str) -> list[int]:
        """The ids that a model goes on with to continue a plain text, in which nothing is a special token."""
        return self.ids_of(self.chat.begin + self.chat.marked(text))

    def prompt_cuts(self, answers: Sequence[Answer], room: int) -> list[int]:
        """How many tokens of each conversation `prompts` leaves out; arguments and errors are the same."""
        return [max(len(ids) - room, 0) for ids in map(self._whole_prompt, answers)]

    def prompted(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Prompts of any lengths, padded to one length before their tokens, so that all go on at one place."""
        return Batch(padded(rows, self.pad_id, left=True))

    def example(self, n: int, generator: torch.Generator | None = None) -> Batch:
        """Answers of one word, or with a generator 3 to 16 tokens that are drawn, the last half of them targets."""
        if generator is None:
            return self.batch([self.encode(Answer.to("a", "a"))] * n)
        longest, vocabulary = min(16, self.max_length), self.tokenizer.get_vocab_size()
        rows: list[Tokens] = []
        for length in torch.randint(3, longest + 1, (n,), generator=generator).tolist():
            ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
            rows.append(Tokens(ids, [2 * i >= length for i in range(length)]))
        return self.batch(rows)

    def describe(self) -> dict[str, Any]:
        """The length at which answers are cut, and digests of the tokenizer and of the chat template."""
        digests = {"tokenizer": self.tokenizer.to_str(), "chat_template": self.chat.template}
        return {"max_length": self.max_length} | {
            f"{name}_sha256": sha256(text.encode()).hexdigest() for name, text in digests.items()
        }

    def _whole_prompt(self, answer: Answer) -> list[int]:
        with named(answer):
            text = self.chat.prompt(answer.prompt)
        return self.ids_of(text)

    def _last(self, ids: list[int], room: int) -> list[int]:
        """The last ids, behind the one that begins every text."""
        if len(ids) <= room:
            return ids
        kept = self._kept(ids)
        return [*ids[:kept], *ids[len(ids) - room + kept :]]

    def _kept(self, ids: Sequence[int]) -> int:
        """How many ids begin every text, and stay where the first ones are left out."""
        return len(self._begin) if ids[: len(self._begin)] == self._begin else 0

    def _fitting(self, answer: Answer) -> Tokens:
        found = self.encode(answer)
        if not any(found.target):
            raise ValueError(f"{answer.place or 'an answer'}: {self.too_long(found)}")
        return found

    def too_long(self, found: Tokens) -> str:
        """Say that no answer of these tokens fits whole."""
        return (
            f"its answer does not fit into max_length = {self.max_length} tokens, {found.cut} too many with what it "
            "answers; shorten it, or give a larger backbone.max_length"
        )

    def _joined(self, texts: Sequence[str]) -> tuple[list[list[int]], bool]:
        """The ids of texts that follow each other, and whether they were encoded apart, as a token would span two."""
        whole, start = self.ids_of("".join(texts)), 0
        parts: list[list[int]] = []
        for number in range(1, len(texts) + 1):
            before = whole if number == len(texts) else self.ids_of("".join(texts[:number]))
            if before != whole[: len(before)] or len(before) < start:
                return [self.ids_of(text, first=i == 0) for i, text in enumerate(texts)], True
            parts.append(whole[start : len(before)])
            start = len(before)
        return parts, False

    def _plainly(self, text: str, as_text: bool, first: bool) -> list[int]:
        """The ids of a text without marks; as plain text if `as_text`."""
        tokenizer = self._of_plain_text if as_text else self.tokenizer
        tokenizer.encode_special_tokens = as_text  # said here, since a copy of a tokenizer forgets it
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if first:
            return found
        # Some tokenizers put a blank before all they encode; behind a line end they do not.
        line = tokenizer.encode("\n", add_special_tokens=False).ids
        behind = tokenizer.encode("\n" + text, add_special_tokens=False).ids
        return behind[len(line) :] if behind[: len(line)] == line else found

    def _shortened(self, whole: Tokens, *, plain: bool) -> Tokens:
        most, count = self.max_length, len(whole.ids)
        if count <= most:
            return whole
        if plain:
            return Tokens(whole.ids[:most], whole.target[:most], count - most, whole.apart)
        return self._without(whole, count - most)

    def _without(self, whole: Tokens, count: int) -> Tokens:
        """Leave out the first tokens behind the one that begins every text."""
        if count == 0:
            return whole
        kept = self._kept(whole.ids)
        ids = [*whole.ids[:kept], *whole.ids[kept + count :]]
        target = [*whole.target[:kept], *whole.target[kept + count :]]
        i = kept
        while i < len(ids) and target[i]:  # an answer whose beginning is missing, or the token before it
            target[i] = False
            i += 1
        return Tokens(ids, target, whole.cut + count, whole.apart)


@contextmanager
def named(answer: Answer) -> Iterator[None]:
    """Name the place of a conversation that the chat template refuses."""
    try:
        yield
    except TemplateError as error:
        raise ValueError(f"{answer.place or 'a conversation'}: {error}") from error


class FittingAnswers(NamedTuple):
    """Answers that can be learned from.

    Attributes:
        data: those whose last answer fits into `max_length` tokens.
        too_long: the others.
        told: what was cut, and what else a person should know, in lines.
    """

    data: AnswerSet
    too_long: list[Unreadable]
    told: list[str]


def before_targets(x: Samples) -> Samples:
    """Samples in which only what stands before the first target of each counts; others than answers as they are.

    Args:
        x: n samples. The first token of an answer is no target, so that each has one that counts.
    """
    if not isinstance(x, Batch) or TARGET not in x.tensors or WRITTEN in x.tensors:  # which are in a row of their own
        return x
    return Batch({**x.tensors, MASK: x[MASK].bool() & (x[TARGET].cumsum(1) == 0)})


def fitting(data: AnswerSet, transform: AnswerTokens) -> FittingAnswers:
    """Return the answers that can be learned from, and say what becomes of the others.

    Args:
        data: the answers.
        transform: makes their tokens.

    Raises:
        ValueError: the chat template refuses a conversation; the message names its place.
    """
    rows = [transform.encode(answer) for answer in data.items]
    fits = [any(row.target) for row in rows]
    left_out = [
        Unreadable(data.items[i].place or data.keys[i], transform.too_long(row))
        for i, row in enumerate(rows)
        if not fits[i]
    ]
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    unknown = transform.unknown_id
    cut = sum(row.cut > 0 for row in kept)
    apart = sum(row.apart for row in kept)
    strange = sum(unknown is not None and 2 * row.ids.count(unknown) > len(row.ids) for row in kept)
    told = [
        (cut, f"{many(cut, 'answer')} with more than {transform.max_length} tokens: the first of the prompt are cut"),
        (apart, f"{many(apart, 'answer')} whose first token would span the end of the prompt: encoded apart from it"),
        (strange, f"this model's tokenizer does not know the script of {many(strange, 'answer')}"),
    ]
    subset = data if all(fits) else data.subset([i for i, fit in enumerate(fits) if fit])
    return FittingAnswers(subset, left_out, [line for count, line in told if count])
