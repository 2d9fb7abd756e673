"""Sums of matrices that have the shape of a layer's weight."""

import torch
from torch import Tensor

from lamella.adapters.adapter import Site, module_key
from lamella.memory.resizable import Resizable

__all__ = ["WeightSum", "site_key"]


class WeightSum(Resizable):
    """A sum of matrices with the shape of the weight rows of one site, in float32, which only training needs.

    Args:
        site: where the rows are.

    Attributes:
        total: (rows, d_in), the sum.
    """

    for_training = True
    total: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__()
        rows = site.layer.weight[site.rows]
        self.register_buffer("total", torch.zeros(rows.shape, device=rows.device))

    @torch.no_grad()
    def add(self, matrix: Tensor) -> None:
        """Add a matrix (rows, d_in)."""
        self.total += matrix.to(self.total)


def site_key(site: Site) -> str:
    """Return a key of a `ModuleDict` for one site; two sites of a layer have different ones."""
    return module_key(f"{site.name}:{site.rows.start}")
