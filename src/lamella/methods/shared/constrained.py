"""Branches whose A stays in a subspace while they are trained.

A is projected after each step, and its gradient before it. With Adam, projected gradients alone are not enough, because
its step scales each entry by itself.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch

__all__ = ["Constrained", "outside", "projecting", "read_at_random", "read_directly", "trained"]


class Constrained(NamedTuple):
    """A branch and what may become of its A.

    Attributes:
        branch: the branch.
        project: projects rows (n, d) onto those that A may have; None where A is not trained at all.
    """

    branch: Branch
    project: Callable[[Tensor], Tensor] | None


def _onto(basis: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the projection of rows (n, d) onto the span of a basis (d, k) of orthonormal columns."""
    return lambda rows: (rows @ basis.to(rows)) @ basis.to(rows).T


def outside(basis: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the projection of rows (n, d) onto what is orthogonal to a basis (d, k) of orthonormal columns."""
    return lambda rows: rows - (rows @ basis.to(rows)) @ basis.to(rows).T


@torch.no_grad()
def read_directly(branches: Sequence[Branch], bases: Sequence[Tensor]) -> list[Constrained]:
    """Let each branch read the leading directions of a basis (d, k) themselves: A is Phi^T, and is not trained."""
    for branch, Phi in zip(branches, bases, strict=True):
        branch.A.copy_(Phi[:, : branch.rank].T)
    return [Constrained(branch, None) for branch in branches]


@torch.no_grad()
def read_at_random(
    branches: Sequence[Branch], bases: Sequence[Tensor], generator: torch.Generator
) -> list[Constrained]:
    """Let each branch read within the span of a basis (d, k): A is C Phi^T, with a random C as in LoRA."""
    for branch, Phi in zip(branches, bases, strict=True):
        bound = Phi.shape[1] ** -0.5
        C = torch.empty(branch.rank, Phi.shape[1]).uniform_(-bound, bound, generator=generator)
        branch.A.copy_(C.to(Phi) @ Phi.T)
    return [Constrained(branch, _onto(Phi)) for branch, Phi in zip(branches, bases, strict=True)]


def trained(constrained: Iterable[Constrained]) -> list[nn.Parameter]:
    """Return the factors that are trained: B of each branch, after its A where this is."""
    return [f for branch, project in constrained for f in ((branch.B,) if project is None else (branch.A, branch.B))]


@torch.no_grad()
def _project_rows(constrained: Sequence[Constrained]) -> None:
    """Project each A in place, as after a step of the optimiser."""
    for branch, project in constrained:
        if project is not None:
            branch.A.copy_(project(branch.A))


@torch.no_grad()
def _project_gradients(constrained: Sequence[Constrained]) -> None:
    """Project the gradient of each A in place, as before a step of the optimiser."""
    for branch, project in constrained:
        if project is not None and branch.A.grad is not None:
            branch.A.grad.copy_(project(branch.A.grad))


def projecting(constrained: Sequence[Constrained]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Project each A now, and return what has to run before and after each step of training, so that it stays."""
    _project_rows(constrained)
    return partial(_project_gradients, constrained), partial(_project_rows, constrained)
