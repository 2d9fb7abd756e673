"""Rules by which the trained tensors of clients become one, and what else of the method they change.

A rule sees a method's branches; other trained tensors, such as heads, are always averaged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Adapted, Branch
from lamella.federated.factors import joined_by_inputs, mean, residual, stacked

__all__ = ["RULES", "Answer", "Joining", "Rule", "Trained", "trained_branches"]


class Trained(NamedTuple):
    """A branch, some of whose factors are trained.

    Attributes:
        name: the name of the branch in the method.
        site: the name of its layer in the method.
        layer: its layer.
        branch: the branch.
    """

    name: str
    site: str
    layer: Adapted
    branch: Branch


class Answer(NamedTuple):
    """What a client has made of a round.

    Attributes:
        weight: its share among all that answered; the shares add up to 1.
        tensors: the trained tensors by name.
        moments: by layer the sum of x x^T over its inputs, float64; empty where the rule does not ask for them.
    """

    weight: float
    tensors: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]


@dataclass(frozen=True)
class Joining:
    """The end of a round: what is to be joined, and where it goes.

    Attributes:
        tensors: the trained tensors of the method by name, which are written.
        branches: the branches.
        answers: those of the clients.
        draws: draws the starts of new branches.
    """

    tensors: Mapping[str, Tensor]
    branches: Sequence[Trained]
    answers: Sequence[Answer]
    draws: torch.Generator

    def of(self, name: str) -> list[Tensor]:
        return [answer.tensors[name] for answer in self.answers]

    @property
    def weights(self) -> list[float]:
        return [answer.weight for answer in self.answers]

    def average(self) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(mean(self.of(name), self.weights))


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        join: writes the joined tensors.
        trains: (round from 0) -> which of "A" and "B" are trained in it.
        plain_mean: whether the result is the mean of the trained tensors and nothing else.
        both: whether it only makes sense where the method trains A and B.
        by_inputs: whether clients send the second moments of their inputs, too.
        sends_all: whether every client is sent the factors of all others.
    """

    join: Callable[[Joining], None]
    trains: Callable[[int], str] = lambda round: "AB"
    plain_mean: bool = False
    both: bool = True
    by_inputs: bool = False
    sends_all: bool = False


def trained_branches(method: nn.Module, trained: Mapping[str, Tensor]) -> list[Trained]:
    """Return the branches of a method that have a trained tensor.

    Args:
        method: the method.
        trained: the trained tensors by name.

    Raises:
        ValueError: a branch is not a plain pair of A and B.
    """
    found: list[Trained] = []
    adapted = {site: layer for site, layer in method.named_modules() if isinstance(layer, Adapted)}
    for site, layer in adapted.items():
        for name, branch in layer.branches.named_modules():
            if isinstance(branch, Branch) and any(f"{site}.branches.{name}.{f}" in trained for f in "AB"):
                if len(list(branch.parameters())) > 2:
                    raise ValueError("federated learning joins branches of A and B alone; set method.form='lora'")
                found.append(Trained(f"{site}.branches.{name}", site, layer, branch))
    return found


def _add_to_weight(part: Trained, update: Tensor) -> None:
    """Add an update (d_out, d_in) to the rows of the weight that a branch acts on."""
    rows = part.layer.weight[part.branch.rows]
    rows.add_((part.branch.scale * update).reshape(rows.shape).to(rows.dtype))


def _factors(joining: Joining, part: Trained) -> tuple[list[Tensor], list[Tensor]]:
    As, Bs = (joining.of(f"{part.name}.{factor}") for factor in "AB")
    return [A.flatten(1) for A in As], [B.flatten(1) for B in Bs]


def _fedex(joining: Joining) -> None:
    for part in joining.branches:
        _add_to_weight(part, residual(*_factors(joining, part), joining.weights))
    joining.average()


def _flora(joining: Joining) -> None:
    joining.average()
    for part in joining.branches:
        A, B = stacked(*_factors(joining, part), joining.weights)
        _add_to_weight(part, B @ A)
        bound = part.branch.A[0].numel() ** -0.5  # as `grow` starts a branch
        part.branch.A.copy_(torch.empty(part.branch.A.shape).uniform_(-bound, bound, generator=joining.draws))
        part.branch.B.zero_()


def _lorm(joining: Joining) -> None:
    joining.average()
    for part in joining.branches:
        moments = [answer.moments[part.site] for answer in joining.answers]
        if f"{part.name}.A" in joining.tensors:
            part.branch.A.copy_(joined_by_inputs(joining.of(f"{part.name}.A"), moments))
        else:
            A = part.branch.A.double()
            seen = [A @ G @ A.T for G in moments]
            part.branch.B.copy_(joined_by_inputs(joining.of(f"{part.name}.B"), seen))


RULES: dict[str, Rule] = {
    "fedavg": Rule(Joining.average, plain_mean=True, both=False),
    "ffa-lora": Rule(Joining.average, lambda round: "B", plain_mean=True, both=False),
    "fedex-lora": Rule(_fedex, sends_all=True),
    "flora": Rule(_flora, sends_all=True),
    "lorm": Rule(_lorm, lambda round: "A" if round % 2 else "B", by_inputs=True),
}
