"""Pseudo-replay: draws from the Gaussians of old classes compete with the images of a new task, in place of old images.

The samples are those of SLCA (Zhang et al., ICCV 2023, arXiv 2303.05118), which re-fits its head on them after each
task; here they take part in the training of the task itself, so that one head is trained over all classes.

    symbol          here
    mu_c, S         the means, and the covariance that all classes share, in the features before the task
    w_c, b_c        where the rows of the head start, of all classes: tau S^-1 mu_c and -tau mu_c^T S^-1 mu_c / 2, the
                    linear discriminant on the features before the task
    tau             SCALE
    loss            CE over all classes on new images + (n_old / n_new) CE on DRAWS draws a step from N(mu_c, S), the
                    classes c uniform over the old ones, so that every class weighs alike

Only new images reach the branches: the draws are features. Neither SCALE nor DRAWS was tuned.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.methods.shared.heads import Head, Heads
from lamella.training.draws import Draws

__all__ = ["PseudoReplay"]

SCALE = 0.3
DRAWS = 64


class PseudoReplay(Draws):
    """The old classes, as draws that the classes of a new task compete with.

    Args:
        ids: (c,) global ids of the old classes.
        means: (c, d), in the features before the task.
        root: (d, d), a square root L of the shared covariance L L^T.
        starts: by global id of an old or a new class, the row (d,) and the bias of the discriminant.
        new: the number of classes of the task.
    """

    def __init__(
        self, ids: Tensor, means: Tensor, root: Tensor, starts: dict[int, tuple[Tensor, Tensor]], new: int
    ) -> None:
        super().__init__()
        self.ids, self.means, self.root = ids, means.float(), root.float()  # not buffers: nothing of them is stored
        self.starts, self.new = starts, new

    @torch.no_grad()
    def start(self, heads: Heads) -> None:
        """Put all rows of all heads where the discriminant has them."""
        for head in (cast(Head, head) for head in heads.heads):
            for row, label in enumerate(head.classes):
                weight, bias = self.starts[label]
                head.weight[row], head.bias[row] = SCALE * weight, SCALE * bias

    def loss(self, heads: Heads) -> Tensor:
        """Return the cross-entropy of draws of old classes, weighed by the number of these.

        Args:
            heads: the heads of all classes, in training.
        """
        if self.generator is None:
            raise RuntimeError("the training loop has not seeded these draws; train by fit(...)")
        device = self.means.device
        chosen = torch.randint(len(self.ids), (DRAWS,), generator=self.generator, device=device)
        noise = torch.randn(DRAWS, len(self.root), generator=self.generator, device=device)
        f = self.means[chosen] + noise @ self.root.T
        return F.cross_entropy(heads(f), heads.columns(self.ids[chosen])) * (len(self.ids) / self.new)
