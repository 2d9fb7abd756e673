"""From a conversation to one text, by the chat template of a model, and which parts of it a model learns to write."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from lamella.common.checks import first_line
from lamella.data.answers import ASSISTANT, PLAIN_TEXT, USER, Turn

__all__ = ["DATE", "PLAIN_TEMPLATE", "ChatTemplate", "Piece", "TemplateError", "plain_template_of_pairs"]

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)
"""The template of models that have none: each turn on lines of its own, and the end token behind an answer."""
OPEN, CLOSE = "\uf8f0", "\uf8f1"
"""Two signs for private use, which mark what only looks like a special token."""
SIGN = "\uf8f2"
"""A third one, which stands for an answer where only what is around it matters."""
DATE = "26 Jul 2024"
"""What templates that name the day are told, so that a text does not depend on when it is made: Llama's own default."""


def plain_template_of_pairs(begin: str, end: str) -> str:
    """Return the template of encoder-decoders that have none: what is read is as their tokenizer makes it of a text.

    Args:
        begin: the special token that it puts before a text; "" where it puts none.
        end: the one that it puts behind.
    """
    first, last = (f"{{{{ {json.dumps(token)} }}}}" for token in (begin, end))
    return (
        f"{first}{{% for message in messages %}}{{{{ message['content'] }}}}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}"
        f"{{% elif loop.last or loop.nextitem['role'] == 'assistant' %}}{last}"
        "{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    )


class TemplateError(ValueError):
    """A template cannot show a conversation."""


class Piece(NamedTuple):
    """A part of a rendered conversation.

    Attributes:
        text: the part. What looks like a special token within a turn stands between OPEN and CLOSE.
        is_target: whether a model learns to write it.
    """

    text: str
    is_target: bool


class ChatTemplate:
    """How a model's conversations are written.

    Args:
        special: the special tokens of the model.
        template: in Jinja, as transformers renders it; PLAIN_TEMPLATE where a model has none.
        names: special tokens by the names that templates have for them, such as "eos_token".
        begin: the special token that the model's tokenizer puts before every text; "" where it puts none. Plain texts
            begin with it, and so does PLAIN_TEMPLATE.
    """

    def __init__(
        self,
        special: Sequence[str],
        *,
        template: str | None = None,
        names: Mapping[str, str] | None = None,
        begin: str = "",
    ) -> None:
        self.template = template or PLAIN_TEMPLATE
        self.begin = begin
        self.names = {"bos_token": "", "eos_token": "", **(names or {})}
        longest_first = sorted(filter(None, special), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """Return the parts of a conversation, one after the other, which are in turn no targets and targets.

        A target is all that the model writes: an answer and what ends it. The text behind the last answer is left out.

        Args:
            turns: a conversation with an answer, or one plain text.

        Raises:
            TemplateError: the template refuses the conversation, or shows its beginning otherwise once it goes on.
        """
        marked = [Turn(role, self.marked(content)) for role, content in turns]
        if marked[0].role == PLAIN_TEXT:
            return [Piece(self.begin, False), Piece(marked[0].content + self.names["eos_token"], True)]
        answered = [i for i, turn in enumerate(marked) if turn.role == ASSISTANT]
        if not answered:
            raise TemplateError("nobody answers in this conversation")
        whole = self._render(marked[: answered[-1] + 1])
        pieces: list[Piece] = []
        done = ""
        for i in answered:
            before = self._render(marked[:i], prompt=True)
            after = whole if i == answered[-1] else self._render(marked[: i + 1])
            if not (before.startswith(done) and after.startswith(before)):
                raise TemplateError("the chat template shows the beginning of a conversation otherwise once it goes on")
            answer = self._answer(before, after, marked[: i + 1], last=i == answered[-1])
            pieces += [Piece(before[len(done) :], False), Piece(answer, True)]
            done = before + answer
        return pieces

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return what a model goes on with to answer a conversation; what it begins with where there is none.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        if not turns:
            return self.begin
        return self._render([Turn(role, self.marked(content)) for role, content in turns], prompt=True)

    @cached_property
    def end(self) -> str:
        """What stands behind an answer and ends it; "" where nothing does, or the template refuses a plain question."""
        try:
            answer = self.pieces([Turn(USER, "a"), Turn(ASSISTANT, "b")])[-1].text
        except TemplateError:
            return ""
        found = self._special.findall(answer)
        return found[-1] if found else ""

    def marked(self, text: str) -> str:
        """Return a text in which all that looks like a special token is marked as text."""
        return self._special.sub(rf"{OPEN}\g<0>{CLOSE}", text.replace(OPEN, "").replace(CLOSE, ""))

    def _answer(self, before: str, after: str, turns: Sequence[Turn], *, last: bool) -> str:
        """Return what the model writes of a rendered conversation.

        Args:
            before: what is rendered of the turns but the last one.
            after: what is rendered of all turns.
            turns: the last of them is the answer.
            last: whether no answer follows.
        """
        known = self._render([*turns[:-1], Turn(ASSISTANT, SIGN)])
        behind = known.rpartition(SIGN)[2]
        if SIGN not in known or not after.endswith(behind):
            return after[len(before) :].rstrip()
        written = after[len(before) : len(after) - len(behind)]
        if closed := re.match(rf"\s*(?:{self._special.pattern})", behind):
            return written + closed[0]
        return written + (self.names["eos_token"] if last else "")

    def _render(self, turns: Sequence[Turn], *, prompt: bool = False) -> str:
        from jinja2 import TemplateError as JinjaError
        from transformers.utils.chat_template_utils import render_jinja_template

        messages: Any = [{"role": turn.role, "content": turn.content} for turn in turns]
        options: dict[str, Any] = {**self.names, "date_string": DATE}
        if self.template == PLAIN_TEMPLATE:
            options["bos_token"] = self.begin
        try:
            found, _ = render_jinja_template(
                [messages], chat_template=self.template, add_generation_prompt=prompt, **options
            )
        except (JinjaError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateError(f"the chat template refuses the conversation ({first_line(error)})") from error
        return found[0]
