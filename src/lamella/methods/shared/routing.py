"""Routers: which task's adapter a sample gets, by one score for each task and sample.

    router            score of task t for a sample                       reads                  further passes, state
    "nearest"         minus the distance to its nearest centre           base features          1, k d numbers a task
    "gaussian"        log P(t) under Gaussians with one covariance       base features          1, d d + d a class
    "least-squares"   the output of a ridge regression                   base features          1, M M + 2 M a class
    "arrow"           |cos| with what the adapter reads most             inputs of the layers   1, d numbers a branch
    "entropy"         minus the entropy of P(class) of adapter t alone   logits of each adapter t, none

Base features are those of the network without adapters, which no task changes. The mathematics of the first three is in
memory/task_scores.py, that of Arrow in memory/arrow.py. Least entropy: Wang, Zhou & Ye, "Integrating Task-Specific
and Universal Adapters for Pre-Trained Model-based Class-Incremental Learning" (TUNA), ICCV 2025, arXiv 2508.08165.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Site, using
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.arrow import TaskArrows
from lamella.memory.task_scores import TaskCentres, TaskGaussians, TaskRegression
from lamella.methods.method import Method
from lamella.methods.shared.heads import OTHER_TASK_PENALTY
from lamella.training.fit import Fit

__all__ = ["ON_FEATURES", "ROUTERS", "Experts", "RouterOnBase", "Routing", "TaskKeys", "entropy", "router_on_base"]

ON_FEATURES = ("nearest", "gaussian", "least-squares")
ROUTERS = (*ON_FEATURES, "arrow", "entropy")

OnFeatures: TypeAlias = TaskCentres | TaskGaussians | TaskRegression
"""What a router on features keeps of every task."""
TaskKeys: TypeAlias = OnFeatures | TaskArrows
"""What a router keeps of every task."""

TEMPERATURES: Mapping[str, float] = {"nearest": 1.0, "gaussian": 1.0}
OTHER_TEMPERATURE = 0.1


class Experts(NamedTuple):
    """What routers may ask of a method.

    Attributes:
        backbone: the network.
        sites: where the adapters sit.
        names: the adapter of each task.
        base: the adapters that act in the pass for features and inputs; usually none.
        logits: features of one adapter (n, d) -> logits of all classes (n, classes).
    """

    backbone: Backbone
    sites: Sequence[Site]
    names: Sequence[str]
    base: str | tuple[str, ...]
    logits: Callable[[Tensor], Tensor]

    def features(self, x: Samples, names: str | Sequence[str]) -> Tensor:
        """Return (n, d) features from one pass in which these adapters act."""
        with using(self.sites, names):
            return self.backbone(x)


@dataclass(frozen=True)
class Routing:
    """Which router chooses, and how its scores become weights.

    Args:
        router: how the task of a sample is recognised: "nearest" (by cluster centres), "gaussian" (by Gaussians of the
            classes with one covariance), "least-squares" (by a ridge regression on random projections), all three of
            the features without adapters, "arrow" (by what each adapter reads, from the adapters alone) or "entropy"
            (by how sure each adapter is, in a pass for each task). A method may refuse some of them, and have a way of
            its own under another name, which is then the default.
        top: how many adapters are mixed for a sample, those with the best scores; at least 1. If left out, all are.
        router_temperature: what the scores are divided by before their softmax gives the weights; above 0. If left out,
            it is 1 for "nearest" and "gaussian", and 0.1 for the others.
        router_projections: the number of random projections of "least-squares", whose squared number of float64 is
            stored; at least 0, and 0 is a regression on the features themselves.

    Raises:
        ValueError: a value is not allowed.
    """

    router: str = "nearest"
    top: int | None = None
    router_temperature: float | None = None
    router_projections: int = 1000

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise ValueError(f"top {self.top} is too small; at least 1 adapter is chosen, or leave it out for all")
        if self.router_temperature is not None and not 0 < self.router_temperature < math.inf:
            raise ValueError(
                f"router_temperature {self.router_temperature} must be a finite number above 0; leave it out for the "
                "usual one"
            )
        if self.router_projections < 0:
            raise ValueError(f"router_projections {self.router_projections} is below 0; 1000 is usual, 0 uses none")

    def check(self, method: str, fits: Sequence[str], refused: Mapping[str, str]) -> None:
        """Refuse a router that does not fit a method.

        Args:
            method: its name, for the message.
            fits: the routers that fit.
            refused: for some others, why they do not fit.

        Raises:
            ValueError: the router is unknown, or does not fit.
        """
        if self.router in refused and self.router not in fits:
            why = refused[self.router]
            raise ValueError(f"router '{self.router}' does not fit {method}: {why}; use one of {', '.join(fits)}")
        check_one_of("router", self.router, fits)

    def on_features(self, width: int, seed: int, clusters: int | None = None) -> OnFeatures:
        """Return what a router on features keeps of tasks.

        Args:
            width: d, the number of features.
            seed: the seed of clusters and projections.
            clusters: how many centres "nearest" keeps of each task; two for each class if left out.
        """
        if self.router == "nearest":
            return TaskCentres(width, clusters, seed)
        if self.router == "gaussian":
            return TaskGaussians(width)
        return TaskRegression(width, self.router_projections, generator(seed, "router"))

    def keys(self, width: int, seed: int, clusters: int | None, sites: Sequence[Site]) -> TaskKeys | None:
        """Return what the router keeps of tasks; None for "entropy", which keeps nothing.

        Args:
            width: d, the number of features.
            seed: the seed of clusters and projections.
            clusters: how many centres "nearest" keeps of each task; two for each class if left out.
            sites: where the adapters sit.

        Raises:
            ValueError: the router does not fit the layers.
        """
        if self.router == "arrow":
            return TaskArrows(sites)
        return self.on_features(width, seed, clusters) if self.router in ON_FEATURES else None

    def learn(self, keys: TaskKeys | None, experts: Experts, task: Task, fit: Fit) -> None:
        """Add a task whose adapter, the newest, is trained.

        Args:
            keys: what the router keeps.
            experts: the network, with the adapter of this task.
            task: the task.
            fit: the passes of this task.
        """
        if isinstance(keys, TaskArrows):
            name = experts.names[-1]
            keys.add([next(b for b in site.layer.of(name) if b.rows == site.rows) for site in experts.sites])
        elif keys is not None:
            points = fit.features(task.train, lambda x: experts.features(x, experts.base), name="keys")
            keys.add(points, task.train.labels)

    def passes(self, tasks: int) -> int:
        """Return how many forward passes the router needs besides the one of the chosen adapters."""
        return tasks if self.router == "entropy" else int(self.router in ROUTERS)

    def scores(self, keys: TaskKeys | None, experts: Experts, x: Samples) -> Tensor:
        """Return (n, tasks) scores of samples, higher for likelier tasks, from `passes` passes."""
        if isinstance(keys, TaskArrows):
            with using(experts.sites, experts.base):
                return keys.scores(lambda: experts.backbone.show(x, experts.sites))
        if keys is not None:
            return keys.scores(experts.features(x, experts.base))
        return -torch.stack([entropy(experts.logits(experts.features(x, n))) for n in experts.names], 1)

    def sharpened(self, scores: Tensor) -> Tensor:
        """Return scores (n, tasks) whose softmax are the weights: divided by the temperature, the `top` ones alone."""
        usual = TEMPERATURES.get(self.router, OTHER_TEMPERATURE)
        temperature = usual if self.router_temperature is None else self.router_temperature
        scores = scores if temperature == 1 else scores / temperature
        if self.top is None or self.top >= scores.shape[1]:
            return scores
        chosen = F.one_hot(scores.topk(self.top, dim=1).indices, scores.shape[1]).sum(1)
        spread = scores.amax(1, keepdim=True) - scores.amin(1, keepdim=True)
        return scores - (OTHER_TASK_PENALTY + spread) * (1 - chosen)


class RouterOnBase(nn.Module):
    """A router that reads the features of the network without adapters, for a method whose adapters act together.

    Args:
        routing: the router, one that reads features.
        experts: the network and its sites.
        seed: the seed of its draws.

    Attributes:
        keys: what the router keeps of each task.
    """

    def __init__(self, routing: Routing, experts: Experts, seed: int) -> None:
        super().__init__()
        self.routing, self.experts = routing, experts
        self.keys = routing.on_features(experts.backbone.width, seed)

    def learn(self, task: Task, fit: Fit) -> None:
        """Add a task, from one pass over its samples."""
        self.routing.learn(self.keys, self.experts, task, fit)

    def scores(self, x: Samples) -> Tensor:
        """Return (n, tasks) float32 scores of samples, whose softmax are the probabilities of the tasks."""
        return self.routing.sharpened(self.routing.scores(self.keys, self.experts, x)).float()


def router_on_base(method: Method, own: str, routing: Routing, *, frozen: bool) -> RouterOnBase | None:
    """Return a router on the features without adapters; None where the method has its own way.

    Args:
        method: the method, which has its backbone, sites and seed already.
        own: the value of `router` that means the method's own way.
        routing: the router.
        frozen: whether the network without adapters stays as it is.

    Raises:
        ValueError: the router does not fit the method, or the network changes.
    """
    together = "its adapters of all tasks act together, so no task has an adapter or an answer of its own"
    name = type(method).__name__
    routing.check(name, (own, *ON_FEATURES), {"arrow": together, "entropy": together})
    if routing.router == own:
        if routing.top is not None or routing.router_temperature is not None:
            raise ValueError(
                f"top and router_temperature are for a router on features, and router is '{own}'; leave them out, or "
                f"use router {', '.join(ON_FEATURES)}"
            )
        return None
    if not frozen:
        raise ValueError(
            f"router '{routing.router}' reads the network without adapters, and {name} merges orthogonal adapters "
            "into its weights; use tokens = 'class' or orthogonal = false"
        )
    return RouterOnBase(routing, Experts(method.backbone, method.sites, (), (), nn.Identity()), method.seed)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy (n,) of the softmax of logits (n, classes), in float64."""
    log_p = logits.double().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)
