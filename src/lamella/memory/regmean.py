"""What RegMean keeps of the updates of one layer: a sum over tasks, whose size does not depend on their number.

RegMean (Jin et al., ICLR 2023, arXiv 2212.09849) merges the updates D_1, ..., D_T of a weight to

    (D_1 G_1 + ... + D_T G_T) (G_1 + ... + G_T)^-1,

where G_i is the second moment of the layer's inputs in task i. So the sum of the products is enough, beside that of the
moments, which is an `OldMoment`.
"""

import torch
from torch import Tensor

from lamella.adapters.merging import over_inputs
from lamella.memory.old_moments import OldMoment
from lamella.memory.resizable import Resizable

__all__ = ["UpdatesOnInputs"]


class UpdatesOnInputs(Resizable):
    """The sum over tasks of D_i G_i, in float64, since the sum of the moments is inverted.

    Args:
        rows: how many output rows of the layer have updates.
        width: d_in, the number of its inputs.

    Attributes:
        product: (rows, d_in).
    """

    for_training = True
    product: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("product", torch.zeros(rows, width, dtype=torch.float64))

    def add(self, update: Tensor, moment: Tensor) -> None:
        """Add a new task: its update D (rows, d_in) and the second moment G (d_in, d_in) of its inputs."""
        self.product += (update.double() @ moment.to(update.device, torch.float64)).to(self.product)

    def merged(self, moments: OldMoment) -> Tensor:
        """Return the merged update (rows, d_in), float64 on the CPU.

        Args:
            moments: the sum of the same tasks' second moments.
        """
        return over_inputs(self.product.cpu(), moments.moment.cpu())
