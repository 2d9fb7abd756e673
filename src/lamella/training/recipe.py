"""Recipes: how a method trains, and which low-rank branches it trains.

A method takes them as keyword arguments, and a configuration table spells out their fields: `[method] epochs = 5` sets
the field `epochs` of the method's `training`. So every method that trains understands the same keys.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lamella.adapters.adapter import Branch, Site, grow
from lamella.backbones.backbone import Backbone
from lamella.common.checks import check_one_of
from lamella.training.optimizers import OPTIMIZERS
from lamella.training.schedules import SCHEDULES, check_milestones, milestone_schedule

__all__ = ["LoRA", "Training"]


@dataclass(frozen=True)
class Training:
    """How long, how fast and by which optimiser a method trains.

    The training loop has no use for `head_lr`, `first_epochs` and `head_start`: methods go by them.

    Args:
        epochs: how often each example of a task is seen; at least 1.
        lr: the learning rate; above 0.
        head_lr: the learning rate of the classifier; `lr` where left out.
        batch_size: examples in a batch; at least 1.
        optimizer: "adam", "adamw" or "sgd".
        momentum: of "sgd", from 0 to below 1; the other optimisers have no use for it.
        weight_decay: how strongly weights are drawn towards 0; at least 0.
        schedule: how the learning rates fall from epoch to epoch: "constant", "cosine" (half a cosine towards 0),
            "milestones", "inflora" (InfLoRA's cosine) or "inflora-code" (the same, as its authors' code runs it).
        milestones: shares of the epochs, such as [0.5, 0.75], at which the learning rates fall to a tenth under the
            schedule "milestones".
        clip: the largest norm of all gradients together; longer ones are shortened to it. No limit where left out.
        accumulate: batches whose gradients make one step of the optimiser; at least 1. It computes what a batch so many
            times as large would, in the memory of one.
        first_epochs: the epochs of the first task; `epochs` where left out.
        head_start: how the rows of new classes begin in a classifier: "uniform" as torch's linear layers do, or "zero".
            On features of large norm a uniform start is noise that a few steps do not remove, and whose gradients
            disturb what is trained below.

    Raises:
        ValueError: a number is out of its range, the optimiser or the schedule is unknown, or milestones are given to
            another schedule.
    """

    epochs: int = 20
    lr: float = 5e-4
    head_lr: float | None = None
    batch_size: int = 128
    optimizer: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[float, ...] = ()
    clip: float | None = None
    accumulate: int = 1
    first_epochs: int | None = None
    head_start: str = "uniform"

    def __post_init__(self) -> None:
        check_one_of("optimizer", self.optimizer, OPTIMIZERS)
        check_one_of("head_start", self.head_start, ("uniform", "zero"))
        check_one_of("schedule", self.schedule, (*SCHEDULES, "milestones"))
        for name in ("epochs", "first_epochs", "batch_size", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("lr", "head_lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be within [0, 1), and 0.9 is usual")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or more")
        check_milestones(self.milestones)
        if self.milestones and self.schedule != "milestones":
            raise ValueError(
                f"milestones {list(self.milestones)} belong to schedule 'milestones', but schedule is "
                f"'{self.schedule}'; choose that schedule, or set milestones to []"
            )

    def of_task(self, number: int) -> "Training":
        """The recipe of task `number`, counted from 0, in which `epochs` is right for the first one too."""
        return self if number or self.first_epochs is None else replace(self, epochs=self.first_epochs)

    def factor(self, epoch: int) -> float:
        """What the learning rates are multiplied by in this epoch, counted from 0."""
        schedule = milestone_schedule(self.milestones) if self.schedule == "milestones" else SCHEDULES[self.schedule]
        return schedule(epoch, self.epochs)


@dataclass(frozen=True)
class LoRA:
    """Which layers carry low-rank branches, and of which form: dW = (alpha / rank) B A.

    Args:
        rank: of a branch; at least 1.
        alpha: the update is multiplied by alpha / rank; above 0. Where left out it is multiplied by 1.
        sites: the roles of the layers that carry branches, such as "query", "value", or "key+value", which share one A.
        blocks: how many of the first blocks are adapted; all of them where left out.
        dropout: the share of a branch's inputs that is zeroed while it is trained, from 0 to below 1.

    Raises:
        ValueError: a number is out of its range, or no site is named.
    """

    rank: int = 10
    alpha: float | None = None
    sites: tuple[str, ...] = ("key+value",)
    blocks: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} is too small; a branch needs a rank of at least 1")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0, or left out for a scale of 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be within [0, 1), and 0 leaves it out")

    @property
    def scale(self) -> float:
        """The constant factor of an update, alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def attach(self, backbone: Backbone) -> tuple[Site, ...]:
        """Make the layers of a backbone able to carry the branches; its outputs stay as they are.

        Raises:
            ValueError: the backbone has no layers of these roles.
        """
        sites = backbone.sites(*self.sites, blocks=self.blocks)
        for site in sites:
            site.layer.dropout = self.dropout
        return sites

    def grow(
        self,
        sites: Sequence[Site],
        name: str,
        generator: torch.Generator | None = None,
        *,
        rank: int | Sequence[int] | None = None,
    ) -> list[Branch]:
        """Add an adapter of this form; the other arguments and the errors are those of `adapters.adapter.grow`.

        Args:
            rank: of the branches where it is not the recipe's: one number, or one for each site.
        """
        return grow(sites, name, self.rank if rank is None else rank, scale=self.scale, generator=generator)
