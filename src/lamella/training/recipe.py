"""Recipes: how a method trains, and which low-rank branches it trains.

A method takes a recipe as a keyword argument. In a configuration the fields of the recipe are keys of the method's own
table: `[method] epochs = 5` sets the field `epochs` of the method's `training`. So all methods that train have the same
keys.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lamella.adapters.adapter import Branch, Site, grow
from lamella.adapters.few_bits import has_few_bits
from lamella.adapters.forms import check_form
from lamella.adapters.starts import STARTS, explained_rank, read_directions, start_orthonormal, start_with_weight
from lamella.backbones.backbone import Backbone
from lamella.common.checks import check_one_of
from lamella.data.loading import step_sizes
from lamella.training.optimizers import OPTIMIZERS
from lamella.training.schedules import SCHEDULES, check_milestones, milestone_schedule

__all__ = ["HEAD_STARTS", "LoRA", "Training"]

HEAD_STARTS = ("uniform", "kaiming", "zero")
"""The names of the initial weights of classifiers; `Training` says what they are."""


@dataclass(frozen=True)
class Training:
    """How a method trains: for how long, at which learning rates, with which optimiser.

    The methods themselves apply `head_lr`, `first_epochs` and `head_start`; the training loop does not use them.

    Args:
        epochs: how many times each example of a task is used; at least 1.
        lr: the learning rate at the start; above 0.
        head_lr: the learning rate of the classifier; above 0. If left out, it is `lr`.
        batch_size: the number of examples in a batch; at least 1.
        optimizer: the optimiser: "adam", "adamw" or "sgd".
        momentum: the momentum of "sgd", from 0 to below 1; the other optimisers ignore it.
        weight_decay: the weight decay of the optimiser; at least 0.
        schedule: how the learning rates fall from epoch to epoch: "constant" (they do not), "cosine" (half a cosine
            towards 0), "milestones" (in steps, see `milestones`), "inflora" (the cosine of InfLoRA's paper) or
            "inflora-code" (that cosine as the authors' code runs it, one epoch late).
        milestones: the points at which the schedule "milestones" divides the learning rates by ten, as shares of the
            epochs within (0, 1], such as [0.5, 0.75]. No other schedule takes them.
        clip: the largest norm of all gradients together; above 0. Longer gradients are scaled down to it. If left out,
            there is no limit.
        accumulate: over how many batches the gradients are averaged before the optimiser makes a step; at least 1. The
            step is that of one batch with all these examples, in the memory of a single batch.
        first_epochs: how many times each example of the first task is used; at least 1. If left out, it is `epochs`.
        min_steps: the smallest number of steps of the optimiser in one call; at least 1. If the epochs make fewer,
            because there are few examples, epochs are added until there are as many. If left out, there is none.
        head_start: the initial weights of a classifier for new classes of d features: "uniform" (weights and biases
            within 1 / sqrt(d), as in torch's linear layers), "kaiming" (weights within sqrt(3 / d), biases 0) or
            "zero". If features have a large norm, random weights are noise that a few steps do not remove, and their
            gradients disturb the layers below.

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
    min_steps: int | None = None
    head_start: str = "uniform"

    def __post_init__(self) -> None:
        check_one_of("optimizer", self.optimizer, OPTIMIZERS)
        check_one_of("head_start", self.head_start, HEAD_STARTS)
        check_one_of("schedule", self.schedule, (*SCHEDULES, "milestones"))
        for name in ("epochs", "first_epochs", "batch_size", "accumulate", "min_steps"):
            _check_count(name, getattr(self, name))
        for name in ("lr", "head_lr", "clip", "momentum", "weight_decay"):
            _check_number(name, getattr(self, name))
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
        """Return the recipe for one task, in which `epochs` is the number of epochs of this task.

        Args:
            number: the place of the task in the order of learning, from 0.
        """
        return self if number or self.first_epochs is None else replace(self, epochs=self.first_epochs)

    def of_examples(self, count: int) -> "Training":
        """Return the recipe for so many examples, in which `epochs` is the number that `min_steps` needs.

        >>> Training(epochs=2, batch_size=10, min_steps=30).of_examples(50).epochs
        6

        Args:
            count: the number of examples; at least 1.
        """
        steps = len(step_sizes(count, self.batch_size, self.accumulate))
        return replace(self, epochs=max(self.epochs, math.ceil((self.min_steps or 1) / steps)))

    def factor(self, epoch: int) -> float:
        """Return the factor of the learning rates in an epoch, 0..1.

        Args:
            epoch: the number of the epoch, from 0.
        """
        schedule = milestone_schedule(self.milestones) if self.schedule == "milestones" else SCHEDULES[self.schedule]
        return schedule(epoch, self.epochs)


@dataclass(frozen=True)
class LoRA:
    """Which layers carry low-rank branches, and of which form: dW = scale B A.

    Not every variant suits every method: `training/variants.py` has what each of them breaks.

    Args:
        rank: the rank of a branch; at least 1.
        alpha: what the scale is made of; above 0. If left out, the scale is 1.
        scaling: what alpha is divided by: "rank" (alpha / rank, as in LoRA) or "root" (alpha / sqrt(rank), as in
            rsLoRA).
        sites: the roles of the layers that carry branches, such as "query" and "value". Roles that are joined by a plus
            sign, such as "key+value", share one A.
        blocks: how many blocks are adapted, counted from the input; at least 1. If left out, all of them are.
        dropout: the share of a branch's inputs that is set to zero at random while it is trained; from 0 to below 1.
        form: what is trained: "lora" (A and B), "dora" (also the length of each row of the weight, beside its
            direction) or "vera" (two vectors beside random A and B, which are the same on all layers and stay).
        start: what A and B are before training: "kaiming" (A is random, B zero), "orthonormal" (the rows of A are
            random and orthonormal), "eva" (the rows of A are the directions in which the task's inputs have most
            energy), "pissa" or "milora" (the parts of the weight with its largest or its smallest singular values,
            which the weight loses).
        explained: the share of the energy of a layer's inputs that its branch should read; above 0, at most 1. Each
            branch has the smallest rank whose leading directions have that share, but never more than `rank`. If left
            out, each has `rank`.
        b_rate: what the learning rate of B is multiplied by, as in LoRA+; above 0.

    Raises:
        ValueError: a value is out of its range or unknown, values contradict each other, or no site is named.
    """

    rank: int = 10
    alpha: float | None = None
    sites: tuple[str, ...] = ("key+value",)
    blocks: int | None = None
    dropout: float = 0.0
    scaling: str = "rank"
    form: str = "lora"
    start: str = "kaiming"
    explained: float | None = None
    b_rate: float = 1.0

    def __post_init__(self) -> None:
        _check_count("rank", self.rank)
        _check_count("blocks", self.blocks)
        if isinstance(self.sites, str) or not self.sites:
            raise ValueError(f"sites is {self.sites!r}; it must be a list of roles such as ['query', 'value']")
        for name in ("alpha", "dropout", "explained", "b_rate"):
            _check_number(name, getattr(self, name))
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0, or left out for a scale of 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be within [0, 1), and 0 leaves it out")
        check_one_of("scaling", self.scaling, ("rank", "root"))
        check_one_of("start", self.start, STARTS)
        check_form(self.form)
        if self.scaling == "root" and self.alpha is None:
            raise ValueError("scaling 'root' divides alpha by the root of the rank, and alpha is left out; set alpha")
        if self.explained is not None and not 0 < self.explained <= 1:
            raise ValueError(f"explained is {self.explained}; it must be above 0 and at most 1, such as 0.9")
        if not 0 < self.b_rate < math.inf:
            raise ValueError(f"b_rate is {self.b_rate}; it must be above 0, and 1 trains B as A")
        if self.form == "vera" and (self.start != "kaiming" or self.b_rate != 1):
            raise ValueError(
                "form 'vera' draws A and B once for all layers and trains neither; leave out start and b_rate, or "
                "choose another form"
            )

    @property
    def scale(self) -> float:
        """The constant factor of an update: alpha / rank or alpha / sqrt(rank), of the recipe's own rank."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (self.rank if self.scaling == "rank" else self.rank**0.5)

    @property
    def needs_moments(self) -> bool:
        """Whether `grow` needs the second moments of the inputs."""
        return self.start == "eva" or self.explained is not None

    def attach(self, backbone: Backbone) -> tuple[Site, ...]:
        """Make the layers of a backbone able to carry branches, which does not change its outputs.

        Args:
            backbone: its layers of the roles in `sites` are replaced in place.

        Returns:
            The sites, where branches can be added.

        Raises:
            ValueError: the backbone has no layers of these roles, or its weights cannot be changed as `start` does.
        """
        sites = backbone.sites(*self.sites, blocks=self.blocks)
        if self.start in ("pissa", "milora") and has_few_bits([site.layer for site in sites]):
            raise ValueError(
                f"start '{self.start}' moves a part of the weight into the branch, and the backbone keeps its weights "
                "in few bits, which stay as they are; choose another start, or storage 'float32'"
            )
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
        tokens: str = "all",
        moments: Mapping[str, Tensor] | None = None,
    ) -> list[Branch]:
        """Add an adapter of this form to sites, which does not change the outputs yet.

        Args:
            sites: where the branches of the adapter sit.
            name: the name of the adapter.
            generator: draws the start of each A; without it A is zero, for methods that compute A themselves.
            rank: the rank of the branches, one number or one for each site; that of the recipe if left out.
            tokens: what the branches act on: "all" tokens, or the "class" token of each sample.
            moments: by layer the second moment (d, d) of its inputs, where `needs_moments`.

        Raises:
            ValueError: as for `adapters.adapter.grow`, or the start does not fit a layer.
        """
        leading = [_leading(moments, site.name) for site in sites] if self.needs_moments else []
        if self.explained is not None:
            rank = [explained_rank(values, self.explained, self.rank) for values, _ in leading]
        kaiming = generator if self.start == "kaiming" else None
        ranks = self.rank if rank is None else rank
        branches = grow(sites, name, ranks, scale=self.scale, generator=kaiming, form=self.form, tokens=tokens)
        for number, (site, branch) in enumerate(zip(sites, branches, strict=True)):
            if self.start == "orthonormal" and generator is not None:
                start_orthonormal(branch, generator)
            elif self.start == "eva":
                read_directions(branch, leading[number][1][:, : branch.rank], 1)
            elif self.start in ("pissa", "milora"):
                start_with_weight(branch, site.layer.weight, largest=self.start == "pissa")
        return branches

    def groups(self, weights: Iterable[Tensor], sites: Sequence[Site], lr: float) -> list[dict[str, Any]]:
        """Return the optimiser groups of weights; one group, unless B has a learning rate of its own.

        Args:
            weights: what is trained.
            sites: the sites that carry the branches.
            lr: the learning rate of A.
        """
        weights = list(weights)
        if self.b_rate == 1:
            return [{"params": weights}]
        layers = {site.layer for site in sites}
        expanding = {id(b.B) for layer in layers for name in layer.branches for b in layer.of(name)}
        own = [weight for weight in weights if id(weight) in expanding]
        others = [weight for weight in weights if id(weight) not in expanding]
        return [{"params": others}, {"params": own, "lr": self.b_rate * lr}]


def _leading(moments: Mapping[str, Tensor] | None, layer: str) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (d,) and eigenvectors (d, d) of a second moment, in falling order of the values."""
    if moments is None or layer not in moments:
        raise ValueError(f"the second moment of the inputs of layer '{layer}' is needed for its branch; give `moments`")
    values, vectors = torch.linalg.eigh(moments[layer].double())
    return values.flip(0), vectors.flip(1)


def _check_count(name: str, value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _check_number(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{name} is {value!r}; it must be a number")
