"""Branches whose A stays in a subspace while they are trained.

A is projected after each step, and its gradient before it. With Adam, projected gradients alone are not enough, because
its step scales each entry by itself.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch

__all__ = ["Constrained", "onto", "outside", "project_gradients", "project_rows", "trained"]


class Constrained(NamedTuple):
    """A branch and what may become of its A.

    Attributes:
        branch: the branch.
        project: projects rows (n, d) onto those that A may have; None where A is not trained at all.
    """

    branch: Branch
    project: Callable[[Tensor], Tensor] | None


def onto(basis: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the projection of rows (n, d) onto the span of a basis (d, k) of orthonormal columns."""
    return lambda rows: (rows @ basis.to(rows)) @ basis.to(rows).T


def outside(basis: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the projection of rows (n, d) onto what is orthogonal to a basis (d, k) of orthonormal columns."""
    return lambda rows: rows - (rows @ basis.to(rows)) @ basis.to(rows).T


def trained(constrained: Iterable[Constrained]) -> list[nn.Parameter]:
    """Return the factors that are trained: B of each branch, after its A where this is."""
    return [f for branch, project in constrained for f in ((branch.B,) if project is None else (branch.A, branch.B))]


@torch.no_grad()
def project_rows(constrained: Sequence[Constrained]) -> None:
    """Project each A in place, as after a step of the optimiser."""
    for branch, project in constrained:
        if project is not None:
            branch.A.copy_(project(branch.A))


@torch.no_grad()
def project_gradients(constrained: Sequence[Constrained]) -> None:
    """Project the gradient of each A in place, as before a step of the optimiser."""
    for branch, project in constrained:
        if project is not None and branch.A.grad is not None:
            branch.A.grad.copy_(project(branch.A.grad))
