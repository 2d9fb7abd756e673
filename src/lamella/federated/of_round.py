"""How clients train in one of several rounds."""

from dataclasses import dataclass, replace
from typing import Any

from lamella.data.loading import Examples
from lamella.training.fit import Loss
from lamella.training.recipe import Training

__all__ = ["OfRound", "Turn"]


@dataclass(frozen=True)
class OfRound(Training):
    """The recipe of a client in one round: its learning rates are those of the round's place in all rounds.

    Attributes:
        before: how many epochs the earlier rounds had.
        in_all: how many all rounds have.
    """

    before: int = 0
    in_all: int = 1

    def factor(self, epoch: int) -> float:
        return super(OfRound, replace(self, epochs=self.in_all)).factor(self.before + epoch)


@dataclass(frozen=True)
class Turn:
    """What is the same for all clients of a round.

    Attributes:
        data: the samples of the task.
        loss: as for `Fit`.
        groups: the trained tensors, with their learning rates.
        recipe: how each client trains.
        name: the name of the call.
        number: of the round, from 0.
        settings: the other arguments of `Fit`.
    """

    data: Examples
    loss: Loss
    groups: list[dict[str, Any]]
    recipe: Training
    name: str
    number: int
    settings: dict[str, Any]
