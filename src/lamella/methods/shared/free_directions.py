"""The base class of methods whose branches read directions that old inputs do not use, as InfLoRA's do."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, Site, module_key
from lamella.adapters.starts import read_directions
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.memory.signatures import protected_share
from lamella.memory.subspace import Subspace, leading_singular, numerical_rank, orthonormal
from lamella.methods.shared.moments import at_most, second_moments
from lamella.methods.shared.own_heads import OwnHeads
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["EnergyRule", "ReadsFreeDirections"]


@dataclass(frozen=True)
class EnergyRule:
    """Which directions of a task's inputs are protected from then on (DualGPM, with the code's or the paper's energy).

    Attributes:
        energy: the share that is protected after the first task; above 0, at most 1.
        energy_of: what counts as energy: "moment" (the squared singular values of the second moment) or "data" (its
            singular values, which are the squared ones of the inputs).
        horizon: the number T of tasks with which the share grows as energy + (1 - energy) t / T; constant without it.
    """

    energy: float
    energy_of: str
    horizon: int | None

    def __post_init__(self) -> None:
        protected_share(self.energy, 0, self.horizon)  # refuses bad values before anything is learned
        check_one_of("energy_of", self.energy_of, ("moment", "data"))

    def threshold(self, task: int) -> float:
        return protected_share(self.energy, task, self.horizon)

    def spectrum(self, G: Tensor, space: Subspace) -> tuple[Tensor, Tensor]:
        """Return the free directions of G (d, d), most energetic first, and the share of G's energy in each."""
        if self.energy_of == "moment":
            U, s = leading_singular(space.outside(G))
            return U, s**2 / (G**2).sum()
        U, s = leading_singular(space.outside(space.outside(G).T))
        return U, s / G.trace()

    def protect(self, space: Subspace, G: Tensor, task: int, *, first: bool) -> None:
        """Extend `space` by the leading free directions of G until the protected share reaches the threshold."""
        threshold = self.threshold(task)
        U, share = self.spectrum(G.double(), space)
        if first:
            count = max(int((share.cumsum(0) < threshold).sum()), 1)
        else:
            unprotected = share.sum() - torch.cat([share.new_zeros(1), share.cumsum(0)])
            enough = unprotected <= 1 - threshold + 1e-12
            count = int(enough.long().argmax()) if bool(enough.any()) else len(share)
        free = space.width - space.dimension
        space.extend(U[:, : min(count, free)])


class ReadsFreeDirections(OwnHeads):
    """A method whose branch of a task has an A in directions that are free, with the most energy of the task's inputs.

    Args:
        backbone: the feature extractor.
        seed: the seed of every random draw.
        training: how a task is trained.
        lora: the form of the branches.
        rule: which directions of a task's inputs are protected from then on.
        of_inputs: whether the rows of A are the leading left singular vectors of the free part of the inputs, in place
            of those of the free part of their second moment.
        statistics_images: how many random images of a task the second moments are computed from; all if None.
        dtype: the precision of the sums.

    Attributes:
        reads_as: by layer, the first one that reads the same inputs: layers that do, as key and value, share what is
            known of these.
    """

    def __init__(
        self,
        backbone: Backbone,
        seed: int,
        training: Training,
        lora: LoRA,
        rule: EnergyRule,
        of_inputs: bool = False,
        statistics_images: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        if statistics_images is not None and statistics_images < 1:
            raise ValueError(f"statistics_images {statistics_images} is too small; give at least 1, or leave it out")
        self.rule, self.of_inputs, self.statistics_images, self.dtype = rule, of_inputs, statistics_images, dtype
        self.free_rank = lora.rank
        self.reads_as = backbone.first_readers(self.sites)
        widths = {site.name: site.layer.weight.shape[1] for site in self.sites}
        spaces = {name: Subspace(widths[name]) for name in dict.fromkeys(self.reads_as.values())}
        self.memory = nn.ModuleDict({module_key(name): spaces[first] for name, first in self.reads_as.items()})

    def protected(self) -> dict[str, Subspace]:
        return {layer: self.space(layer) for layer in dict.fromkeys(site.name for site in self.sites)}

    def moments_of(self, task: Task, fit: Fit, name: str) -> dict[str, Tensor]:
        """Return by layer G, the mean of x x^T over all tokens x of the task's augmented training images.

        Of layers that read the same inputs only the first has one.
        """
        images = at_most(task.train, self.statistics_images, generator(self.seed, name, len(self.objective)))
        found = second_moments(fit, images, self, self.sites, self.reads_as, name=name, dtype=self.dtype)
        return {layer: moment.mean for layer, moment in found.items()}

    def protect(self, moments: dict[str, Tensor]) -> None:
        """Protect the leading directions of what the layers read of the task that was learned."""
        number = len(self.objective) - 1
        for layer, G in moments.items():
            self.rule.protect(self.space(layer), G, number, first=number == 0)

    def grow_designed(self, moments: dict[str, Tensor], name: str = "new") -> list[tuple[Site, Branch]]:
        """Add branches whose A has the leading free directions of the task's inputs as rows, of norm 1 / sqrt 3."""
        of_inputs = {layer: self.directions(layer, G) for layer, G in moments.items()}
        designs = [of_inputs[self.reads_as[site.name]] for site in self.sites]
        open_sites = [(site, U) for site, U in zip(self.sites, designs, strict=True) if U.shape[1]]
        if not open_sites:
            why = "old tasks protect all directions of every adapted layer; lower `energy` or adapt more"
            unread = (
                "the inputs of every adapted layer are zero, so no branch has anything to read; choose other `sites`"
            )
            raise RuntimeError(why if len(self.objective) else unread)
        ranks = [U.shape[1] for _, U in open_sites]
        branches = self.lora.grow([site for site, _ in open_sites], name, rank=ranks)
        for branch, (_, U) in zip(branches, open_sites, strict=True):
            read_directions(branch, U)
        return [(site, branch) for branch, (site, _) in zip(branches, open_sites, strict=True)]

    def directions(self, layer: str, G: Tensor) -> Tensor:
        """Return (d, k) orthonormal directions that a new branch on a layer reads, k at most `rank`."""
        return self.free_directions(G, self.space(layer))

    def free_directions(self, G: Tensor, space: Subspace) -> Tensor:
        """Return (d, k) orthonormal, the free directions of inputs that have most energy, k at most `rank`.

        Args:
            G: (d, d), the second moment of the inputs.
            space: what is protected.
        """
        G = G.double()
        free = space.outside(space.outside(G).T) if self.of_inputs else space.outside(G)
        U, s = leading_singular(free)
        norm = float(torch.linalg.eigvalsh(G)[-1])  # the spectral norm, since G is positive semi-definite
        count = min(self.lora.rank, space.width - space.dimension, numerical_rank(s, norm))
        return orthonormal(space.outside(U[:, :count]))

    def space(self, layer: str) -> Subspace:
        """What is protected of the inputs of a layer."""
        return cast(Subspace, self.memory[module_key(layer)])
