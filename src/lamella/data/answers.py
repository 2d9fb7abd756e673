"""Sets of answers: conversations that a language model learns to answer, and texts that it learns to go on with."""

import json
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from lamella.data.images import UNKNOWN_CLASS
from lamella.data.listed import ListedSet
from lamella.data.splits import stratified_split
from lamella.data.texts import keys_of_texts, normal_text

__all__ = [
    "ASSISTANT",
    "PLAIN_TEXT",
    "ROLES",
    "USER",
    "Answer",
    "AnswerSet",
    "Turn",
    "keys_of_answers",
    "said",
    "split_prompts",
]

USER = "user"
ASSISTANT = "assistant"
ROLES = ("system", USER, ASSISTANT)
"""Who may speak in a conversation."""
PLAIN_TEXT = "text"
"""The role of the only turn of a text that answers nobody."""


class Turn(NamedTuple):
    """What one side of a conversation says.

    Attributes:
        role: one of ROLES, or PLAIN_TEXT.
        content: what is said. Nothing within it is a special token of a model, whatever it looks like.
    """

    role: str
    content: str


class Answer(NamedTuple):
    """One sample of a language model.

    Attributes:
        turns: a conversation, every assistant turn of which is learned, or a single turn of PLAIN_TEXT, all of which is
            learned. A conversation that still has to be answered ends with another turn.
        references: further answers that are as right as the one that is there, for scores.
        place: where it stands, such as "answers.jsonl, line 3", for messages; no part of what it is.
        choices: the answers to choose from, for scores; empty where there are none.
    """

    turns: tuple[Turn, ...]
    references: tuple[str, ...] = ()
    place: str = ""
    choices: tuple[str, ...] = ()

    @classmethod
    def to(cls, prompt: str, response: str | None = None) -> Self:
        """A prompt, and the response to it where there is one."""
        return cls((Turn(USER, prompt), *(() if response is None else (Turn(ASSISTANT, response),))))

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """What stands before the last answer: nothing before a plain text, all where no answer is there."""
        return self.turns[:-1] if self.turns[-1].role in (ASSISTANT, PLAIN_TEXT) else self.turns

    @property
    def asked(self) -> tuple[Turn, ...]:
        """The prompt, or an empty turn of the user where nothing stands before the answer."""
        return self.prompt or (Turn(USER, ""),)

    @property
    def response(self) -> str:
        """The last answer, or the plain text; "" where no answer is there."""
        return self.turns[-1].content if self.turns[-1].role in (ASSISTANT, PLAIN_TEXT) else ""


def keys_of_answers(answers: Sequence[Answer]) -> list[str]:
    """Return a stable identity of each answer: a digest of its turns, in Unicode's usual form and without outer blanks.

    A number follows where an answer comes again. So whether one is held back does not depend on its row.
    """
    return keys_of_texts([_told(said(a.turns)) for a in answers])


def _told(turns: Sequence[tuple[str, str]]) -> str:
    return json.dumps(turns, ensure_ascii=False)


class AnswerSet(ListedSet[Answer]):
    """Answers that a language model learns to give. They have no classes.

    Args:
        answers: the answers.
        labels: (n,) int64, for those who ask every set for labels; -1 where left out.
        keys: a stable identity of each answer; no two are equal. A digest of its content where left out.

    Raises:
        ValueError: the lengths differ, or a key comes twice.
    """

    noun = "answer"

    def __init__(
        self, answers: Sequence[Answer], labels: Tensor | None = None, keys: Sequence[str] | None = None
    ) -> None:
        unknown = torch.full((len(answers),), UNKNOWN_CLASS) if labels is None else labels
        super().__init__(answers, unknown, keys_of_answers(answers) if keys is None else keys)

    def __repr__(self) -> str:
        return f"AnswerSet({len(self)} answers)"

    def identity(self, i: int) -> bytes:
        """The turns and the references of the answer."""
        answer = self.items[i]
        return f"{_told(answer.turns)}{json.dumps(answer.references)}".encode()


def split_prompts(data: AnswerSet, *, fraction: float, seed: int, name: str) -> Tensor:
    """Tell which answers of a set are held out, (n,) bool; the answers to one prompt are never parted.

    Args:
        data: the answers.
        fraction: of the prompts that is held out, in (0, 1); nothing is where all answer one prompt.
        seed: another seed, another split.
        name: of the split.
    """
    asked = [said(answer.prompt or answer.turns) for answer in data.items]
    first: dict[object, str] = {}
    for prompt, key in zip(asked, data.keys, strict=True):
        first.setdefault(prompt, key)
    _, held = stratified_split(torch.zeros(len(first)), list(first.values()), fraction=fraction, seed=seed, name=name)
    prompts = list(first)
    chosen = {prompts[i] for i in held.tolist()}
    return torch.tensor([prompt in chosen for prompt in asked], dtype=torch.bool)


def said(turns: Sequence[Turn]) -> tuple[tuple[str, str], ...]:
    """Return who says what, in Unicode's usual form and without outer blanks, by which equal turns are known."""
    return tuple((role, normal_text(content)) for role, content in turns)
