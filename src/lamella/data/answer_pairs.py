"""From answers to two rows of token ids: what the encoder of an encoder-decoder reads, and what its decoder writes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamella.common.words import many
from lamella.data.answer_tokens import TARGET, WRITTEN, AnswerTokens, Tokens, named
from lamella.data.answers import ASSISTANT, PLAIN_TEXT, Answer, Turn
from lamella.data.chat import ChatTemplate
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK, padded

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["AnswerPairs"]


class AnswerPairs(AnswerTokens):
    """What an encoder-decoder, such as T5, expects as input; a `Transform`.

    The last answer of a conversation is written, and all before it is read: earlier answers are no targets. A plain
    text is written to an empty prompt. What is read has `max_length` tokens at most, and what is written as many with
    its start; else all is as in `AnswerTokens`. In a batch, "input_ids" and "attention_mask" are of what is read, and
    "decoder_input_ids" and "target" (n, t) of what is written, behind the token that every answer starts from.

    Args:
        tokenizer: of the model.
        chat: how its conversations are written.
        max_length: the largest number of tokens of a prompt, and of an answer with what it starts from; at least 3.
        start: the id that the decoder starts from.
        pad_id: the id that stands for padding. It is never seen.
    """

    padding_side = "right"

    def __init__(
        self, tokenizer: "Tokenizer", chat: ChatTemplate, *, max_length: int, start: int, pad_id: int = 0
    ) -> None:
        super().__init__(tokenizer, chat, max_length=max_length, pad_id=pad_id)
        self.start = start
        self._opening = [] if self._begin == [start] else self._begin  # BART writes its first token, T5 has none

    def encode(self, answer: Answer) -> Tokens:
        """The tokens that are read and behind them, as targets, those that are written; see `AnswerTokens.encode`."""
        plain = answer.turns[0].role == PLAIN_TEXT
        with named(answer):
            turns = (*answer.asked, Turn(ASSISTANT, answer.response)) if plain else answer.turns
            *read, written = self.chat.pieces(turns)
        whole, answered = self.ids_of("".join(piece.text for piece in read)), self._opening + self.ids_of(written.text)
        prompt, most = self._last(whole, self.max_length), self.max_length - 1  # the start is one of its tokens
        over = max(len(answered) - most, 0)
        if over and not plain:
            return Tokens([*prompt, *answered], [False] * (len(prompt) + len(answered)), over)
        kept = answered[:most]
        return Tokens([*prompt, *kept], [False] * len(prompt) + [True] * len(kept), len(whole) - len(prompt) + over)

    def batch(self, rows: Sequence[Tokens]) -> Batch:
        """Tokens of any lengths, what is read and what is written padded to one length each."""
        pairs = [list(zip(row.ids, row.target, strict=True)) for row in rows]
        read = padded([[i for i, is_target in pair if not is_target] for pair in pairs], self.pad_id)
        written = padded([[self.start, *(i for i, is_target in pair if is_target)] for pair in pairs], self.pad_id)
        target = written[MASK]
        target[:, 0] = False
        return Batch({**read, WRITTEN: written[IDS], TARGET: target})

    def read_once(self, rows: Sequence[Tokens]) -> tuple[list[int], list[Tokens]]:
        """The prompt, which the encoder reads once; and all of each answer, see `AnswerTokens.read_once`."""
        return rows[0].ids[: rows[0].last.start], list(rows)

    def prompted(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Prompts of any lengths, padded to one length behind their tokens, to which nothing is written yet."""
        return self.batch([Tokens([*row], [False] * len(row)) for row in rows])

    def continued(self, text: str) -> list[int]:
        """The ids that are read to answer a plain text, in which nothing is a special token."""
        return self._whole_prompt(Answer.to(text))

    def too_long(self, found: Tokens) -> str:
        """Say that the answer of these tokens does not fit whole."""
        return (
            f"its answer does not fit into max_length = {self.max_length} tokens, by {many(found.cut, 'token')}; "
            "shorten it, or give a larger backbone.max_length"
        )

    def _whole_prompt(self, answer: Answer) -> list[int]:
        return super()._whole_prompt(answer._replace(turns=answer.asked))
