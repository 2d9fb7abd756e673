"""Answers in a file of rows: prompts and responses, conversations, or texts to go on with."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lamella.common.checks import did_you_mean
from lamella.common.words import many
from lamella.data.answers import ASSISTANT, PLAIN_TEXT, ROLES, Answer, AnswerSet, Turn, said
from lamella.data.names import alike
from lamella.data.scenario import Source
from lamella.data.sources.files import PARTS, used_parts
from lamella.data.sources.parts import divide
from lamella.data.sources.rows import AS_TEXT, Row, Rows
from lamella.data.sources.text_table import TEXTS, column_of, named_cell, sound
from lamella.data.tasks import Unreadable

__all__ = ["answers_of_rows", "has_columns_of_answers", "holds_answers", "load_answers"]

MESSAGES = ("messages", "conversation")
PROMPTS = ("prompt", "instruction", "question")
"""The usual names of a column of prompts."""
RESPONSES = ("response", "completion", "answer")
"""The usual names of a column of responses."""
BESIDE = ("id", "split", "references", "choices")
"""What may stand beside the answer of a row."""
FORMS = "prompt and response, messages, or text"


class _Columns(NamedTuple):
    """The columns that are read, by what they hold; None for what is not there."""

    messages: str | None
    prompt: str | None
    response: str | None
    text: str | None
    id: str | None
    split: str | None
    references: str | None
    choices: str | None

    @property
    def form(self) -> tuple[str, ...]:
        """The columns of a row's answer."""
        return tuple(c for c in (self.messages, self.prompt, self.response, self.text) if c)


def holds_answers(rows: Rows) -> bool:
    """Whether rows are answers by the names of their columns, and not labelled texts or images.

    A text without anything beside it but an id or a split is one, too.
    """
    columns = _columns(rows)
    if has_columns_of_answers(rows):
        return True
    known = {columns.text, columns.id, columns.split, columns.references, columns.choices}
    return columns.text is not None and known.issuperset(rows.columns)


def has_columns_of_answers(rows: Rows) -> bool:
    """Whether rows have a column that only answers have."""
    columns = _columns(rows)
    return any((columns.messages, columns.prompt, columns.response))


def load_answers(rows: Rows, *, name: str | None = None, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """Load the answers of a file as a data set without classes.

    A row has a prompt and a response, a list of messages (each a role and a content, the last of them an answer), or a
    text. The columns `id`, `split`, `references` (other right answers) and `choices` (answers to choose from) are read
    where they are there. Rows with an
    empty answer are left out and listed. The same row twice counts once, and a prompt that the test part has leaves the
    training part.

    Args:
        rows: of the file.
        name: of the data set; the file's name where left out.
        test_fraction: to hold out for testing where there is no split column, in [0, 1).
        split_seed: of that split.

    Raises:
        ValueError: a column or a value is missing or wrong; the message names the line.
    """
    name = name or rows.path.stem
    found, unreadable = answers_of_rows(rows)
    parts, keys = _parts(rows, found), _ids(rows, found)
    answers, is_test, told = _each_once([row.answer for row in found], parts)
    if not answers:
        raise ValueError(f"{rows.path} has no answers: {unreadable[0].reason if unreadable else 'it has no rows'}")
    data = AnswerSet(answers, keys=[keys[answer.place] for answer in answers] if keys else None)
    return divide(
        name,
        data,
        (),
        is_test=None if is_test is None else torch.tensor(is_test, dtype=torch.bool),
        test_fraction=test_fraction,
        split_seed=split_seed,
        told=(f"answers are in the columns {', '.join(map(repr, _columns(rows).form))}", *told, *rows.told),
        unreadable=unreadable,
    )


class _Found(NamedTuple):
    answer: Answer
    row: Row


def answers_of_rows(rows: Rows, *, answered: bool = True) -> tuple[list[_Found], list[Unreadable]]:
    """Return the answers of rows, each with its row, and what was left out because it is empty.

    Args:
        rows: of a file.
        answered: whether each row has an answer; prompts alone are read otherwise, and answers are kept where they are.

    Raises:
        ValueError: a column or a value is missing or wrong; the message names the line.
    """
    columns = _columns(rows)
    _check(rows, columns, answered)
    found: list[_Found] = []
    unreadable: list[Unreadable] = []
    for row in rows.rows:
        answer = _answer(rows, row, columns, answered)
        empty = _empty(answer, answered)
        if empty:
            unreadable.append(Unreadable(answer.place, f"the {empty} is empty"))
        else:
            found.append(_Found(answer, row))
    return found, unreadable


def _columns(rows: Rows) -> _Columns:
    messages, prompt, response, text = (column_of(rows.columns, own) for own in (MESSAGES, PROMPTS, RESPONSES, TEXTS))
    beside = (column_of(rows.columns, (own,)) for own in BESIDE)
    return _Columns(messages, prompt, response, None if messages or prompt or response else text, *beside)


def _check(rows: Rows, columns: _Columns, answered: bool) -> None:
    has = f"its columns are {', '.join(rows.columns)}" if rows.columns else "it is empty"
    if columns.messages and (columns.prompt or columns.response):
        first = rows.rows[0].cells if rows.rows else {}
        wanted = columns.messages if columns.messages in first else columns.prompt or columns.response
        other = next((f", {row.place}" for row in rows.rows if wanted not in row.cells), "")
        raise ValueError(
            f"{rows.path}{other}: rows of messages and rows of prompts in one file; give each kind a file of its own"
        )
    if not columns.form:
        raise ValueError(f"{rows.heading}: no column of answers; rows need {FORMS}, and {has}")
    if answered and columns.prompt and not columns.response:
        raise ValueError(
            f"{rows.heading}: no response column beside {columns.prompt!r}{_meant(rows, RESPONSES)}; {has}"
        )
    rows.check_once(columns)
    if columns.response and not columns.prompt:
        meant = _meant(rows, PROMPTS)
        raise ValueError(f"{rows.heading}: no prompt column beside {columns.response!r}{meant}; {has}")


def _meant(rows: Rows, names: Sequence[str]) -> str:
    """Return the column that is probably a misspelt one of some names, as the end of a message; "" if there is none."""
    return next((said for name in names if (said := did_you_mean(name, rows.columns))), "")


def _answer(rows: Rows, row: Row, columns: _Columns, answered: bool) -> Answer:
    where, place = f"{rows.path}, {row.place}", f"{rows.path.name}, {row.place}"
    if row.beyond:
        raise ValueError(
            f"{where}: more cells than the {len(rows.columns)} columns that line 1 names; put a cell that holds the "
            'separator into quotation marks, "like, this"'
        )
    beside = {
        "references": _listed(row, columns.references, "references", where),
        "choices": _listed(row, columns.choices, "choices", where),
        "place": place,
    }
    if columns.messages:
        turns = _turns(row.cells.get(columns.messages), columns.messages, where)
        if answered and turns[-1].role != ASSISTANT:
            raise ValueError(f"{where}: the last message is of the {turns[-1].role}; end with an answer to be learned")
        return Answer(turns, **beside)
    if columns.prompt:
        prompt = _text(row, columns.prompt, where)
        if not answered and (columns.response is None or row.cells.get(columns.response) is None):
            return Answer.to(prompt)._replace(**beside)
        response = _text(row, str(columns.response), where)
        return Answer.to(prompt, response)._replace(**beside)
    return Answer((Turn(PLAIN_TEXT, _text(row, str(columns.text), where)),), **beside)


def _turns(value: Any, column: str, where: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else f"{_kind(value)}, not a list"
        raise ValueError(f'{where}: {column} is {what}; write [{{"role": "user", "content": ...}}, ...] as JSON')
    turns: list[Turn] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}: message {number} is no object with a role and a content")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"{where}: message {number} has the role {role!r}; roles are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise ValueError(f"{where}: the content of message {number} is {_kind(content)}; {AS_TEXT}")
        turns.append(Turn(role, sound(content, f"content of message {number}", where)))
    return tuple(turns)


def _text(row: Row, column: str, where: str) -> str:
    """Return a cell that holds a text; an empty cell of a table is "".

    Raises:
        ValueError: it is missing, so that the row is of another kind, or no text.
    """
    if column not in row.cells:
        raise ValueError(f"{where}: no {column}; the rows of a file are all of one kind: {FORMS}")
    value = row.cells[column]
    if value is None or value != value:  # only NaN, an empty cell of a table, is not itself
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: the {column} is {_kind(value)} {str(value)[:20]!r}; {AS_TEXT}")
    return sound(value, column, where)


def _listed(row: Row, column: str | None, what: str, where: str) -> tuple[str, ...]:
    value = row.cells.get(column) if column else None
    if value is None or value != value:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{where}: the {what} are {_kind(value)}, not a list of texts; write them as JSON")
    if what == "choices" and len(set(value)) < len(value):
        raise ValueError(f"{where}: a choice comes twice; the answers to choose from must differ")
    return tuple(sound(one, what, where) for one in value)


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "a text", type(None): "nothing", bool: "true or false"}
    return kinds.get(type(value), "a number")


def _empty(answer: Answer, answered: bool) -> str:
    """Return which part of an answer says nothing; "" where each says something."""
    for turn in answer.turns:
        if not turn.content.strip() and (answered or turn.role != ASSISTANT):
            return {ASSISTANT: "response", PLAIN_TEXT: "text"}.get(turn.role, "prompt")
    return ""


def _parts(rows: Rows, found: Sequence[_Found]) -> list[bool | None]:
    """Return for each answer whether it is of the test part; None where it is of no part that is used."""
    column = _columns(rows).split
    if column is None:
        return []
    names: list[str] = []
    for _, row in found:
        split = named_cell(row, column, "split", f"{rows.path}, {row.place}") or ""
        if alike(split) not in PARTS:
            raise ValueError(f"{rows.path}, {row.place}: the split {split!r} is unknown; use one of {', '.join(PARTS)}")
        names.append(split)
    return [PARTS[alike(name)] if used else None for name, used in zip(names, used_parts(names), strict=True)]


def _ids(rows: Rows, found: Sequence[_Found]) -> dict[str, str]:
    """Return the ids of answers by their places, where rows have ids."""
    column = _columns(rows).id
    if column is None:
        return {}
    ids = {f.answer.place: named_cell(f.row, column, "id", f"{rows.path}, {f.row.place}") or "" for f in found}
    if twice := [key for key, count in Counter(ids.values()).items() if count > 1]:
        places = [place for place, key in ids.items() if key == twice[0]]
        raise ValueError(f"{places[1]}: the id {twice[0]!r} is already that of {places[0]}; ids must differ")
    return ids


def _each_once(
    answers: Sequence[Answer], parts: Sequence[bool | None]
) -> tuple[list[Answer], list[bool] | None, list[str]]:
    """Return each answer once, without training answers to prompts of the test part, and say what was done."""
    pairs = zip(answers, parts or [False] * len(answers), strict=True)
    used = [(answer, part) for answer, part in pairs if part is not None]
    once: dict[tuple[object, ...], tuple[Answer, bool]] = {}
    for answer, is_test in used:
        once.setdefault((said(answer.turns), is_test), (answer, is_test))
    asked = {_asked(answer) for answer, is_test in once.values() if is_test}
    apart = [(answer, is_test) for answer, is_test in once.values() if is_test or _asked(answer) not in asked]
    told: list[str] = []
    if repeated := len(used) - len(once):
        told.append(f"counted once: {many(repeated, 'answer')} that came again")
    if both := len(once) - len(apart):
        told.append(f"left out of training, because the test part asks the same: {many(both, 'answer')}")
    return [answer for answer, _ in apart], [is_test for _, is_test in apart] if parts else None, told


def _asked(answer: Answer) -> tuple[tuple[str, str], ...]:
    return said(answer.prompt or answer.turns)
