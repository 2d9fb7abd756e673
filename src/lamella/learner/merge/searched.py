"""The weight of each adapter, found with a few labelled samples: by what features separate their classes, or by what
answers cost. Nothing but these weights is fitted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.adapters.adapter import grow
from lamella.adapters.pairs import Pair
from lamella.adapters.sites import Site, adapt
from lamella.backbones import Backbone
from lamella.backbones.language_model import LanguageModel
from lamella.common.progress import Progress, silent
from lamella.common.words import many
from lamella.data.answer_tokens import AnswerTokens, fitting
from lamella.data.answers import AnswerSet
from lamella.data.images import concatenate
from lamella.data.loading import Examples, batches
from lamella.data.samples import Samples
from lamella.data.scenario import Source as Data
from lamella.learner.merge.sources import Source
from lamella.training.mixing import Mixing, mix

__all__ = ["Searched", "leave_one_out_loss", "search_weights"]

BATCH = 32
TEMPERATURES = torch.logspace(-3, 1, 41, dtype=torch.float64)
"""In units of the mean squared distance from the mean of the own class."""


class Searched(NamedTuple):
    """What a search found.

    Attributes:
        weights: one for each adapter.
        told: what it was found on, and what it is worth, in a line.
    """

    weights: list[float]
    told: str


def search_weights(
    sources: Sequence[Source],
    backbone: Backbone,
    data: Data,
    *,
    evaluations: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> Searched:
    """Search the weights with which adapters together suit a few labelled samples best.

    Args:
        sources: the adapters, all of this backbone.
        backbone: the network without adapters; it gets them as branches.
        data: images or texts with labels, at least two of each class, or answers. Both of its parts count.
        evaluations: how often the loss is computed at most, each time by one pass over the samples.
        seed: the seed of the search.
        progress: opens a progress bar.

    Raises:
        ValueError: an adapter is not of this backbone, the data are of another kind, a class has one sample, or no
            adapter helps.
        RuntimeError: the package cmaes is not installed.
    """
    names = [f"adapter{i}" for i in range(len(sources))]
    sites = [site for name, source in zip(names, sources, strict=True) for site in _attach(backbone, name, source)]
    loss, of = _loss_of(backbone, data)
    with progress("search weights", evaluations) as advance:

        def counted() -> float:
            cost = loss()
            advance(1, f"loss {cost:.3f}")
            return cost

        found = mix(sites, names, counted, Mixing(evaluations), seed=seed)
    weights = [found.coefficients[name] for name in names]
    if not any(weights):
        raise ValueError(f"no adapter helps on {of} (the loss is lowest without any, {found.bare:.3f})")
    each = ", ".join(f"{weight:.3g} for {source.place}" for weight, source in zip(weights, sources, strict=True))
    return Searched(weights, f"found on {of}: {each}; the loss fell from {found.bare:.3f} to {found.loss:.3f}")


@torch.no_grad()
def _attach(backbone: Backbone, name: str, source: Source) -> tuple[Site, ...]:
    modules = dict(backbone.model.named_modules())
    pairs: dict[str, Pair] = {}
    for layer, pair in source.pairs.items():
        own = next((found for found in (layer, f"network.{layer}") if found in modules), None)
        if own is None or getattr(modules[own], "weight", torch.empty(0)).shape != pair.shape:
            raise ValueError(
                f"'{source.place}' changes the layer '{layer}' {tuple(pair.shape)}, which '{backbone.name}' has not; "
                "name the network that the adapters belong to by --backbone"
            )
        pairs[own] = pair
    sites = adapt(backbone.model, list(pairs))
    branches = grow(sites, name, [max(1, len(pairs[site.name].A)) for site in sites])
    for site, branch in zip(sites, branches, strict=True):
        if len(pairs[site.name].A):
            branch.A.copy_(pairs[site.name].A)
            branch.B.copy_(pairs[site.name].B)
    return sites


def _loss_of(backbone: Backbone, data: Data) -> tuple[Callable[[], float], str]:
    """Return what is minimised, and the samples that it is computed on, in words."""
    samples: Examples = concatenate([data.train, data.test]) if len(data.test) else data.train
    transform, model = backbone.transform, backbone.model
    if samples.noun != transform.noun:
        raise ValueError(f"'{data.name}' holds {samples.noun}s, and '{backbone.name}' takes {transform.noun}s")
    if isinstance(samples, AnswerSet) and isinstance(transform, AnswerTokens) and isinstance(model, LanguageModel):
        samples, too_long, _ = fitting(samples, transform)
        if not len(samples):
            raise ValueError(f"no answer of '{data.name}' fits into the model")
        parts = _inputs(backbone, samples)
        cost = lambda: torch.cat([backbone.run(x, model.losses) for x in parts]).mean()  # noqa: E731
        left_out = f" ({len(too_long):,} more do not fit into the model)" if too_long else ""
        return lambda: float(cost()), many(len(samples), samples.noun) + left_out
    classes, counts = samples.labels.unique(return_counts=True)
    if alone := [data.class_names[c] for c, n in zip(classes.tolist(), counts.tolist(), strict=True) if n < 2]:
        raise ValueError(
            f"class '{alone[0]}' of '{data.name}' has one {samples.noun}; give two at least of each class, by which it "
            "is seen what separates them"
        )
    if len(classes) < 2:
        raise ValueError(f"'{data.name}' has one class, and weights are found by what separates classes; give two")
    parts = _inputs(backbone, samples)
    told = f"{many(len(samples), samples.noun)} of {len(classes)} classes"
    return lambda: leave_one_out_loss(torch.cat([backbone(x) for x in parts]), samples.labels), told


def _inputs(backbone: Backbone, samples: Examples) -> list[Samples]:
    view = backbone.transform.view(torch.device("cpu"))
    return [x for x, _, _ in batches(samples, torch.arange(len(samples)), BATCH, view)]


def leave_one_out_loss(features: Tensor, labels: Tensor) -> float:
    """Return the cross-entropy of the nearest class mean, each sample left out of the mean of its own class.

    Logits are minus squared distances, divided by the temperature that suits them best, so that the loss does not
    depend on the scale of the features.

    Args:
        features: (n, d).
        labels: (n,), each at least twice.
    """
    x, (classes, columns) = features.double(), labels.unique(return_inverse=True)
    member = F.one_hot(columns, len(classes)).double()
    counts = member.sum(0)
    means = member.T @ x / counts[:, None]
    squares = torch.cdist(x, means).square()
    # x - (n m - x) / (n - 1) = n / (n - 1) (x - m), where m is the mean with x
    own = squares.gather(1, columns[:, None]) * (counts / (counts - 1)).square()[columns][:, None]
    squares = squares.scatter(1, columns[:, None], own)
    unit = own.mean().clamp_min(torch.finfo(torch.float64).tiny)
    return min(float(F.cross_entropy(-squares / (unit * t), columns)) for t in TEMPERATURES)
