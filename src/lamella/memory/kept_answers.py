"""A memory of answers: rows of old tasks, as they were given."""

import json
from typing import Any

import torch
from torch import Tensor

from lamella.data.answers import Answer, AnswerSet, Turn
from lamella.data.images import concatenate
from lamella.data.loading import Examples
from lamella.memory.resizable import Resizable
from lamella.memory.stores import decoded, encoded

__all__ = ["KeptAnswers"]


class KeptAnswers(Resizable):
    """Answers of old tasks, in the order in which they came.

    Attributes:
        rows: (bytes,) uint8: all of them as one list of JSON.
    """

    for_training = True
    still_in_training = True  # so that checkpoints of `fit` do not contain the rows
    resizable = ("rows",)
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", encoded(()))

    def __len__(self) -> int:
        return len(decoded(self.rows))

    def as_set(self) -> AnswerSet:
        """The kept answers. The key of one with the original key KEY is "kept/i/KEY"."""
        rows: list[dict[str, Any]] = [json.loads(row) for row in decoded(self.rows)]
        return AnswerSet([_answer(row) for row in rows], keys=[f"kept/{i}/{row['key']}" for i, row in enumerate(rows)])

    def join(self, data: Examples) -> Examples:
        """Return `data` and all kept answers as one set; `data` itself where none are kept."""
        return concatenate([data, self.as_set()]) if len(self) else data

    def keep(self, data: Examples, share: float, draws: torch.Generator) -> None:
        """Keep a random share of the answers of a task, one at least where the share is above 0.

        Args:
            data: the answers.
            share: 0..1.
            draws: draws which are kept.

        Raises:
            ValueError: the data are no answers.
        """
        if not isinstance(data, AnswerSet):
            raise ValueError(f"a memory of answers keeps answers, and these are {data.noun}s")
        count = max(round(share * len(data)), int(share > 0))
        chosen = torch.randperm(len(data), generator=draws)[:count].sort().values.tolist()
        new = [_row(data.items[i], data.keys[i]) for i in chosen]
        self.rows = encoded([*decoded(self.rows), *new]).to(self.rows.device)


def _row(answer: Answer, key: str) -> str:
    return json.dumps({**answer._asdict(), "key": key}, ensure_ascii=False)


def _answer(row: dict[str, Any]) -> Answer:
    turns = tuple(Turn(*turn) for turn in row["turns"])
    return Answer(turns, tuple(row["references"]), row["place"], tuple(row["choices"]))
