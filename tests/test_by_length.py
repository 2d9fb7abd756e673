"""A training step on texts in parts of like lengths: the features and gradients of the whole batch, less padding."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lamella.adapters.adapter import Site, grow, using, watch
from lamella.adapters.prefix import Prefix, prefixing
from lamella.backbones import Backbone
from lamella.backbones.by_length import divisible
from lamella.common.randomness import generator
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK
from lamella.testing import tiny_bert

LENGTHS = [30, 4, 5, 29, 4, 12, 3, 4, 5, 3]


def batch(lengths: list[int]) -> Batch:
    ids = torch.randint(5, 40, (len(lengths), max(lengths)), generator=generator(0, "ids"))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Batch({IDS: ids * mask, MASK: mask})


def adapted(*roles: str) -> tuple[Backbone, tuple[Site, ...], list[torch.nn.Parameter]]:
    backbone = tiny_bert()
    sites = backbone.sites(*roles)
    factors: list[torch.nn.Parameter] = []
    for i, branch in enumerate(grow(sites, "a", 3)):
        branch.A.data = 0.3 * torch.randn(branch.A.shape, generator=generator(i, "A"))
        branch.B.data = 0.3 * torch.randn(branch.B.shape, generator=generator(i, "B"))
        factors += [branch.A.requires_grad_(True), branch.B.requires_grad_(True)]
    return backbone, sites, factors


class Shapes:
    """Notes how many samples and tokens each pass of a network has."""

    def __init__(self, backbone: Backbone) -> None:
        self.found: list[tuple[int, ...]] = []
        self.run = backbone.model.forward
        backbone.model.forward = self  # type: ignore[method-assign]

    def __call__(self, x: Batch) -> Tensor:
        self.found.append(tuple(x[IDS].shape))
        return self.run(x)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(2, 31), min_size=1, max_size=12))
def test_features_and_gradients_are_those_of_the_whole_batch(lengths: list[int]) -> None:
    backbone, _, factors = adapted("query", "key+value", "out", "mlp")
    x = batch(lengths)
    assert divisible(backbone.model, x)
    found, expected = backbone(x), backbone.run(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weigh = torch.randn(found.shape, generator=generator(0, "weights"))
    slopes, wanted = (torch.autograd.grad((weigh * f).sum(), factors) for f in (found, expected))
    for a, b in zip(slopes, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-4


def test_parts_are_of_like_lengths_and_compute_less_for_padding() -> None:
    backbone, _, _ = adapted("key+value")
    seen = Shapes(backbone)
    backbone(batch(LENGTHS))
    assert sum(n for n, _ in seen.found) == len(LENGTHS)
    assert sum(n * tokens for n, tokens in seen.found) <= 1.6 * sum(LENGTHS) < len(LENGTHS) * max(LENGTHS)


def test_a_batch_of_like_lengths_stays_whole() -> None:
    backbone, _, _ = adapted("key+value")
    seen = Shapes(backbone)
    backbone(batch([9, 10, 10, 9]))
    assert seen.found == [(4, 10)]


@contextmanager
def dropping(sites: tuple[Site, ...]) -> Generator[None]:
    for site in sites:
        site.layer.dropout, site.layer.draws = 0.5, torch.Generator()
    yield


@contextmanager
def hooked(backbone: Backbone) -> Generator[None]:
    handle = next(iter(backbone.model.children())).register_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def training(backbone: Backbone) -> Generator[None]:
    backbone.model.train()
    yield
    backbone.model.eval()


def prefix() -> Prefix:
    return Prefix(torch.zeros(len(LENGTHS), 1, 16), torch.zeros(len(LENGTHS), 1, 16))


WHOLE: dict[str, Callable[[Backbone, tuple[Site, ...]], Any]] = {
    "without gradients": lambda *_: torch.no_grad(),
    "watched": lambda _, sites: watch(sites, lambda layer: lambda x: None),
    "a coefficient for each sample": lambda _, sites: using(sites, {"a": torch.linspace(0, 1, len(LENGTHS))}),
    "a coefficient of the inputs": lambda _, sites: using(sites, {"a": lambda h: h.mean((1, 2))}),
    "dropout on branches": lambda _, sites: dropping(sites),
    "hooks": lambda backbone, _: hooked(backbone),
    "the network's own dropout": lambda backbone, _: training(backbone),
    "prefixes": lambda *_: prefixing([prefix()]),
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_batch_stays_whole_where_somebody_would_see_its_parts(what: str) -> None:
    backbone, sites, _ = adapted("key+value")
    seen = Shapes(backbone)
    with WHOLE[what](backbone, sites):
        backbone(batch(LENGTHS))
    assert seen.found == [(len(LENGTHS), max(LENGTHS))]


def test_numbers_for_all_samples_do_not_keep_a_batch_whole() -> None:
    backbone, sites, _ = adapted("key+value")
    seen = Shapes(backbone)
    for coefficient in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        with using(sites, {"a": coefficient}):
            backbone(batch(LENGTHS))
    assert len(seen.found) > 3


def test_a_batch_with_more_than_texts_stays_whole() -> None:
    backbone, _, _ = adapted("key+value")
    x = batch(LENGTHS)
    assert divisible(backbone.model, x)
    assert not divisible(backbone.model, Batch(x.tensors | {"other": torch.zeros(len(x))}))


def test_a_batch_that_is_padded_at_the_left_stays_whole() -> None:
    backbone, _, _ = adapted("key+value")
    x = batch(LENGTHS)
    assert not divisible(backbone.model, x.map(lambda tensor: tensor.flip(1)))
