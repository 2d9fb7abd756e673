"""Signatures of tasks: directions of layer inputs by which the task of an image is recognised.

The signature of a task is the block of directions that its inputs added to those of earlier tasks. The share of an
image's class token within each block gives a gate (how similar the image is to the task) and the probability of the
task, both in the forward pass that computes the features.

    Psi_t = [Phi_1 | .. | Phi_t]                    Signature.basis, orthonormal (GPM: Saha, Garg & Roy, ICLR 2021)
    Phi_i                                           Signature.block(i)
    rho_i(h) = |Phi_i^T h| / |h|                    Signature.similarity
    rho_bar_i                                       Signature.level: mean of rho_i over task i's own training images
    s_i = mean over layers of rho_i / rho_bar_i     Signatures.scores
    pi, conf                                        calibration.py
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, module_key, watch
from lamella.adapters.tokens import class_token
from lamella.data.samples import Samples
from lamella.memory.inputs import Inputs
from lamella.memory.resizable import Resizable
from lamella.memory.subspace import FINE_ROUNDING, orthonormal

__all__ = ["GATES", "Signature", "Signatures", "protected_share"]

GATES = ("normalised", "cosine", "off", "vector")

FLOOR = 1e-4
"""A block whose mean similarity is below this counts as empty."""

ROUNDING = 1e-7
"""A smaller share of the energy is due to rounding; FINE_ROUNDING where all of the energy is wanted."""

NOBODYS = -1
"""The owner of directions that are protected, but belong to no task's block."""


def protected_share(energy: float, task: int, horizon: int | None) -> float:
    """Return the share of energy to protect, energy + (1 - energy) task / horizon.

    Args:
        energy: the share after the first task; above 0, at most 1.
        task: the number of tasks before this one.
        horizon: the expected number of tasks, at least 1; if None, the share is always `energy`.

    Raises:
        ValueError: `energy` is not within (0, 1], or `horizon` below 1.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy {energy} is outside (0, 1]; 0.95 is usual")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon {horizon} is too small; it is the number of tasks, or left out")
    return energy if horizon is None else energy + (1 - energy) * min(task / horizon, 1.0)


class Signature(Resizable):
    """The signatures of all tasks in one layer.

    Args:
        width: d, the number of the layer's inputs.
        each: whether the share of each single direction is measured, too.

    Attributes:
        basis: (d, K), orthonormal columns, a block of columns for each task.
        owner: (K,) int64, the task of each column, or NOBODYS.
        level: (T,), the mean similarity of each task's own images to its block; 0 if the block is empty.
        reach: (K,), the mean of |phi_j^T h| / |h| over the images of each column's own task; only with `each`.
    """

    resizable = ("basis", "owner", "level", "reach")

    basis: Tensor
    owner: Tensor
    level: Tensor
    reach: Tensor

    def __init__(self, width: int, each: bool = False) -> None:
        super().__init__()
        self.each = each
        if each:
            self.register_buffer("reach", torch.zeros(0))
        self.register_buffer("basis", torch.zeros(width, 0))
        self.register_buffer("owner", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("level", torch.zeros(0))

    @property
    def width(self) -> int:
        return self.basis.shape[0]

    @property
    def dimension(self) -> int:
        """K, the number of directions of all tasks, 0..d."""
        return self.basis.shape[1]

    @property
    def tasks(self) -> int:
        return len(self.level)

    def block(self, task: int) -> Tensor:
        """Return Phi (d, k), the directions that a task added; k is 0 if it added none."""
        return self.basis[:, self.owner == task]

    def outside(self, rows: Tensor) -> Tensor:
        """Return the part of rows (n, d) that is orthogonal to all blocks."""
        basis = self.basis.to(rows)
        return rows - (rows @ basis) @ basis.T

    def new_directions(self, moment: Tensor, share: float) -> Tensor:
        """Return (d, k), the fewest directions that together with the known ones have this share of the energy.

        With the inputs as columns of H and H' = H - Psi Psi^T H, they are the leading left singular vectors of H', as
        few as possible with |H|^2 - |H'|^2 + sum of their squared singular values >= share |H|^2 (GPM).

        Args:
            moment: (d, d), the mean of h h^T over n inputs; n times its eigenvalues are the squared singular values.
            share: the share of the inputs' energy, 0..1.
        """
        G = moment.double()
        values, vectors = torch.linalg.eigh(self.outside(self.outside(G).T))
        shares = values.flip(0).clamp_min(0) / G.trace().clamp_min(torch.finfo(G.dtype).tiny)
        reached = 1 - shares.sum() + torch.cat([shares.new_zeros(1), shares.cumsum(0)])
        wanted = int((reached < share - 1e-12).sum())
        rounding = ROUNDING if share < 1 else FINE_ROUNDING
        count = min(wanted, int((shares > rounding).sum()), self.width - self.dimension)
        # Projected once more, since the remaining parts of known directions would add up over the tasks.
        return orthonormal(self.outside(vectors.flip(1)[:, :count].T).T).to(self.basis.dtype).contiguous()

    @torch.no_grad()
    def extend(self, moment: Tensor, share: float, class_tokens: Tensor) -> None:
        """Add the block of the next task.

        Args:
            moment: (d, d), the mean of h h^T over the vectors to protect.
            share: the share of their energy to protect, 0..1.
            class_tokens: (n, d), the class tokens of the task's own training images, which give its level.
        """
        number = self.tasks
        self.protect(moment, share, number)
        self.level = torch.cat([self.level, self.level.new_zeros(1)])
        self.level[number] = self.similarity(class_tokens)[:, number].mean()
        if self.each:
            self.reach = torch.cat([self.reach, self.parts(class_tokens)[:, len(self.reach) :].mean(0)])

    @torch.no_grad()
    def protect(self, moment: Tensor, share: float, owner: int = NOBODYS) -> None:
        """Add directions for an owner until all directions together have a share of the energy.

        Args:
            moment: (d, d), the mean of h h^T over the vectors to protect.
            share: the share of their energy to protect, 0..1.
            owner: the task whose block they are; by default they are protected only.
        """
        new = self.new_directions(moment, share)
        if self.basis.device != new.device:
            self.to(new.device)
        self.basis = torch.cat([self.basis, new], dim=1)
        self.owner = torch.cat([self.owner, self.owner.new_full((new.shape[1],), owner)])
        if self.each and owner == NOBODYS:
            self.reach = torch.cat([self.reach, self.reach.new_zeros(new.shape[1])])

    @torch.no_grad()
    def similarity(self, h: Tensor) -> Tensor:
        """Return rho (n, T), 0..1, the cosine between h (n, d) and the span of each block."""
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(self.basis)
            of_task = (self.owner[:, None] == torch.arange(self.tasks, device=h.device)).to(h)
            energy = (h @ self.basis).square() @ of_task
            return (energy.sqrt() / h.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)

    @torch.no_grad()
    def parts(self, h: Tensor) -> Tensor:
        """Return |phi_j^T h| / |h| (n, K), 0..1, the cosine between h (n, d) and each single direction."""
        with torch.autocast(h.device.type, enabled=False):
            h = h.to(self.basis)
            return ((h @ self.basis).abs() / h.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)

    def normalised(self, rho: Tensor) -> Tensor:
        """Return rho / rho_bar, (n, T) -> (n, T): about 1 on a task's own images, and 1 if its block is empty."""
        return torch.where(self.level > FLOOR, rho / self.level.clamp_min(FLOOR), 1.0)


class Reader:
    """Reads the input of one layer once in each forward pass, for all gates of its branches and for the task scores.

    Args:
        signature: the signatures of the layer.
        gate: one of GATES: "normalised" (gates are rho / rho_bar, at most 1), "cosine" (gates are rho) or "vector"
            (each direction has its own: its share / the mean of it, at most 1).

    Attributes:
        rho: (n, T), the similarities of the latest input.
        gates: (n, T), the gates that follow from them, 0..1; (n, K) with "vector".
    """

    def __init__(self, signature: Signature, gate: str) -> None:
        self.signature, self.gate = signature, gate
        self.rho = self.gates = torch.zeros(0, 0)
        self._read: tuple[Any, Any] = (None, None)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> None:
        # A weak reference recognises the input by identity. It does not keep a batch in memory, and a later batch at
        # the same address is not mistaken for it.
        latest, basis = self._read
        if latest is not None and latest() is x and basis is self.signature.basis:
            return
        signature, h = self.signature, class_token(x)
        self.rho = signature.similarity(h)
        if self.gate == "vector":
            self.gates = (signature.parts(h) / signature.reach.clamp_min(FLOOR)).clamp_max(1.0)
        else:
            self.gates = self.rho if self.gate == "cosine" else signature.normalised(self.rho).clamp_max(1.0)
        self._read = ref(x), self.signature.basis


class Gate:
    """The coefficient of a branch: the similarity of each image to a task (n,), or to its directions (n, rank).

    Args:
        reader: reads the inputs of the layer.
        task: the number of the task.
        rank: with "vector", the number of the task's directions that have a gate, the leading ones.
    """

    def __init__(self, reader: Reader, task: int, rank: int) -> None:
        self.reader, self.task, self.rank = reader, task, rank

    def __call__(self, x: Tensor) -> Tensor:
        self.reader(x)
        if self.reader.gate != "vector":
            return self.reader.gates[:, self.task]
        first = self.reader.signature.known("owner").index(self.task)  # a block's columns are neighbours
        return self.reader.gates[:, first : first + self.rank]


class Signatures(nn.Module):
    """The signatures of all layers of some sites.

    Args:
        sites: the sites whose layers are read.
        gate: one of GATES, as in `Reader`.
    """

    def __init__(self, sites: Sequence[Site], gate: str = "normalised") -> None:
        super().__init__()
        layers = {site.name: site.layer for site in sites}
        self.sites = tuple(sites)
        self.layers = nn.ModuleDict(
            {module_key(name): Signature(layer.weight.shape[1], gate == "vector") for name, layer in layers.items()}
        )
        self.readers = {layer: Reader(self[name], gate) for name, layer in layers.items()}

    def __getitem__(self, layer: str) -> Signature:
        return cast(Signature, self.layers[module_key(layer)])

    @property
    def tasks(self) -> int:
        return next(iter(self.readers.values())).signature.tasks

    def gate(self, site: Site, task: int, rank: int = 1) -> Gate:
        """Return the gate of a branch of this site: the similarity of each image to a task."""
        return Gate(self.readers[site.layer], task, rank)

    def attach_gates(self, prefix: str) -> None:
        """Scale the branches of adapter `prefix` + number of each task by the similarity to the task of that number."""
        for site in self.sites:
            for task in range(self.tasks):
                for branch in site.layer.of(f"{prefix}{task}"):
                    branch.gate = self.gate(site, task, branch.rank)

    def extend(self, inputs: Mapping[str, Inputs], share: float) -> None:
        """Add the blocks of the next task.

        Args:
            inputs: its inputs, by the name of the layer.
            share: the share of their energy to protect, 0..1.
        """
        for name, seen in inputs.items():
            self[name].extend(seen.moment, share, seen.class_tokens)

    def protect(self, inputs: Mapping[str, Inputs], share: float) -> None:
        """Protect further inputs, without a block for them; the arguments are those of `extend`."""
        for name, seen in inputs.items():
            self[name].protect(seen.moment, share)

    def reading(self, forward: Callable[[Samples], Any], x: Samples) -> Any:
        """Return `forward(x)` for samples x; meanwhile every layer is read for `scores`."""
        with watch(self.sites, lambda layer: self.readers[layer], padding_too=True):
            return forward(x)

    def scores(self) -> Tensor:
        """Return the scores s (n, T) of the latest batch, the mean over the layers; about 1 for the right task."""
        return torch.stack([r.signature.normalised(r.rho) for r in self.readers.values()]).mean(0)
