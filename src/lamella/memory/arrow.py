"""Arrow: how much the inputs of layers lie along what each adapter reads most, known from the adapters alone.

Ostapenko, Su, Ponti, Charlin, Le Roux, Pereira, Caccia & Sordoni, "Towards Modular LLMs by Building and Reusing a
Library of LoRAs", ICML 2024, arXiv 2405.11157.

For each branch, v is the right singular vector of the update B A with its largest singular value: the direction of
inputs that the update answers to most strongly. An adapter's score for a sample is the mean of |cos(v, x)| over the
sample's tokens x and over the adapter's branches; the sign of a singular vector has no meaning.

Departure: the paper, and PEFT, choose for each token and each layer apart. Here an adapter has one score for each
sample, so that it can choose a classifier, too. The inputs are those of the network without adapters. An adapter's
vectors are computed once, when its task is learned.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Site, watch
from lamella.adapters.branches import Adapted, Branch
from lamella.adapters.tokens import mean_over_tokens
from lamella.memory.resizable import Resizable

__all__ = ["TaskArrows", "leading_input"]


def leading_input(A: Tensor, B: Tensor) -> Tensor:
    """Return the first right singular vector (d,) of an update B A, in float64; zeros where the update is zero.

    Args:
        A: (r, d).
        B: (rows, r).
    """
    # B A = Q (R A) with B = Q R, and Q changes no right singular vector. So the matrix is as small as A.
    small = torch.linalg.qr(B.double()).R @ A.double()
    U = torch.linalg.eigh(small @ small.T).eigenvectors[:, -1]
    return F.normalize(U @ small, dim=0)


class TaskArrows(Resizable):
    """The leading inputs of the branches of every task's adapter.

    Args:
        sites: the sites of the adapters; linear layers. Every adapter has one branch at each of them.

    Attributes:
        directions: (t, D) float32, of each task the leading inputs of its branches side by side, in the order of the
            sites.

    Raises:
        ValueError: one of the layers is a convolution.
    """

    resizable = ("directions",)

    directions: Tensor

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        if odd := [site.name for site in sites if not isinstance(site.layer, nn.Linear)]:
            raise ValueError(
                f"router 'arrow' compares the inputs of linear layers, and '{odd[0]}' is a convolution; choose another "
                "router, such as 'least-squares'"
            )
        self.sites = tuple(sites)
        self.widths = [site.layer.weight.shape[1] for site in sites]
        self.register_buffer("directions", torch.zeros(0, sum(self.widths)))

    @torch.no_grad()
    def add(self, branches: Sequence[Branch]) -> None:
        """Add the next task.

        Args:
            branches: those of its adapter, in the order of the sites.
        """
        own = torch.cat([leading_input(branch.A, branch.expansion) for branch in branches])
        self.directions = torch.cat([self.directions, own[None].to(self.directions)])

    def drop(self, number: int) -> None:
        """Remove a task; the numbers of later tasks fall by one."""
        self.directions = torch.cat([self.directions[:number], self.directions[number + 1 :]])

    @torch.no_grad()
    def scores(self, run: Callable[[], object]) -> Tensor:
        """Return the scores (n, tasks) of the samples in a pass, 0..1.

        Args:
            run: makes one pass over the samples.

        Raises:
            RuntimeError: a layer reads other inputs than one row of tokens for each sample.
        """
        parts = list(zip(self.sites, self.directions.split(self.widths, 1), strict=True))

        def note(layer: Adapted) -> _Along:
            return _Along([own for site, own in parts if site.layer is layer])

        with watch(self.sites, note, padding_too=True) as seen:
            run()
        found = [score for along in seen.values() for score in along.scores]
        if len({len(score) for score in found}) != 1:
            raise RuntimeError("a layer reads other inputs than the tokens of each sample; choose another router")
        return torch.stack(found).mean(0)


class _Along:
    """Compares the inputs of one layer with directions (t, d), which several sites may have."""

    def __init__(self, directions: Sequence[Tensor]) -> None:
        self.directions = directions
        self.scores: list[Tensor] = []

    def __call__(self, x: Tensor) -> None:
        with torch.autocast(x.device.type, enabled=False):
            unit = F.normalize(x.float(), dim=-1)
            self.scores += [mean_over_tokens((unit @ V.T).abs()) for V in self.directions]
