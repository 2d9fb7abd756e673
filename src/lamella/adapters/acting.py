"""Which branches act in a pass through a network, and what they add to the weights of its layers."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.adapters.adapter import watch
from lamella.adapters.branches import Adapted, Branch, Coefficient
from lamella.adapters.sites import Site

__all__ = ["ActingBranch", "DiffersBySample", "acting_branches", "added"]


class ActingBranch(NamedTuple):
    """A branch that acts in every prediction.

    Attributes:
        adapter: the name of its adapter.
        branch: the branch.
        coefficient: the number that it is multiplied by.
    """

    adapter: str
    branch: Branch
    coefficient: float


class DiffersBySample(ValueError):
    """The branches that act, or their coefficients, are not the same for every sample."""


@torch.no_grad()
def acting_branches(layers: Mapping[str, Adapted], forward: Callable[[], object]) -> dict[str, list[ActingBranch]]:
    """Return by layer the branches that act in a pass, with their coefficients.

    Args:
        layers: the layers to look at, by name.
        forward: runs the pass. A layer that it does not call has no acting branches.

    Raises:
        DiffersBySample: branches act otherwise on other samples, or a layer is called several times.
    """
    passes: dict[Adapted, list[Any]] = {layer: [] for layer in layers.values()}
    sites = [Site(name, layer, slice(0, layer.weight.shape[0])) for name, layer in layers.items()]

    def note(layer: Adapted) -> Callable[[Tensor], None]:
        return lambda x: passes[layer].append(layer.acting)

    with watch(sites, note, padding_too=True):
        forward()
    if any(len(seen) > 1 for seen in passes.values()):
        raise DiffersBySample("a layer is called several times in one pass")
    chosen = {name: passes[layer][0] if passes[layer] else {} for name, layer in layers.items()}
    return {name: _acting(layer, chosen[name]) for name, layer in layers.items()}


def _acting(layer: Adapted, chosen: Mapping[str, Coefficient] | None) -> list[ActingBranch]:
    coefficients = dict.fromkeys(layer.branches, 1.0) if chosen is None else chosen
    found = [(name, branch, c) for name, c in coefficients.items() for branch in layer.of(name)]
    numbers = [(name, branch, _number(c)) for name, branch, c in found if branch.gate is None]
    acting = [ActingBranch(name, branch, number) for name, branch, number in numbers if number is not None]
    if len(acting) < len(found):
        raise DiffersBySample("a branch has a coefficient for each sample")
    return acting


def _number(coefficient: Coefficient) -> float | None:
    if isinstance(coefficient, Tensor):
        return float(coefficient) if coefficient.numel() == 1 else None
    return None if callable(coefficient) else coefficient


@torch.no_grad()
def added(weight: Tensor, acting: Sequence[ActingBranch]) -> Tensor:
    """Return the sum that branches add to a weight, in float64 on the CPU.

    Args:
        weight: the weight of the layer, without the branches.
        acting: the branches.
    """
    total = torch.zeros(weight.shape, dtype=torch.float64)
    wide = weight.detach().cpu().double()
    for _, branch, coefficient in acting:
        total[branch.rows] += coefficient * deepcopy(branch).cpu().double().update(wide)
    return total
