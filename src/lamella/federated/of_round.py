"""How a client trains in one of several rounds."""

from dataclasses import dataclass, replace

from lamella.training.recipe import Training

__all__ = ["OfRound"]


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
