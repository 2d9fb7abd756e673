"""Branches on class tokens: they change that token's rows and no other, and bases of class tokens make them exact."""

from typing import Any

import numpy as np
import pytest
import torch
from sequences import encoder
from streams import configured, draw, fit_for, images, tiny_backbone, tiny_residual_backbone
from test_class_token import KINDS, ROLES, vit
from torch import Tensor, nn

from lamella.adapters.adapter import Branch, Site, adapt, grow, merge, using
from lamella.adapters.tokens import counting
from lamella.backbones import Backbone
from lamella.data.scenario import Task
from lamella.data.transform import of_images, plain_view
from lamella.memory.inputs import gather
from lamella.memory.signatures import Signatures
from lamella.methods.duallora import DualLoRA


def fill(branches: list[Branch], size: float = 0.3) -> list[Branch]:
    for i, branch in enumerate(branches):
        branch.A.data = size * draw(*branch.A.shape, name=f"A {i}")
        branch.B.data = size * draw(*branch.B.shape, name=f"B {i}")
    return branches


def size_of(change: Tensor, of: Tensor) -> float:
    return float(change.norm() / of.norm())


# one layer -----------------------------------------------------------------------------------------------------------


def layer_with_both() -> tuple[Any, tuple[Site, ...], list[Branch]]:
    """A layer with a branch for all tokens on some rows, and two for class tokens."""
    net = nn.Sequential(nn.Linear(6, 8)).requires_grad_(False)
    rows, every = adapt(net, "0", slice(2, 5)), adapt(net, "0")
    branches = [
        *grow(rows, "all", 2, scale=0.5),
        *grow(every, "first", 3, scale=2.0, tokens="class"),
        *grow(rows, "second", 1, tokens="class"),
    ]
    return net, every, fill(branches)


def by_hand(net: Any, x: Tensor, branches: list[Branch], coefficient: list[Any], first: list[int]) -> np.ndarray:
    """y = W x + b for each token, then each branch on its rows, in NumPy and float64."""
    X, W, b = (t.double().numpy() for t in (x, net[0].weight, net[0].bias))
    y = X @ W.T + b
    for branch, c in zip(branches, coefficient, strict=True):
        A, B = branch.A.double().numpy(), branch.B.double().numpy()
        for i in range(len(X)):
            for token in [first[i]] if branch.tokens == "class" else range(X.shape[1]):
                factor = np.asarray(c)[i] if np.ndim(c) else c
                y[i, token, branch.rows] += branch.scale * B @ (factor * (A @ X[i, token]))
    return y


def test_the_outputs_are_those_of_the_formula_written_out() -> None:
    net, sites, branches = layer_with_both()
    x = draw(4, 5, 6)
    names = ("all", "first", "second")
    for coefficients in ((1.0, 1.0, 1.0), (0.5, torch.rand(4), 2.0), (torch.rand(4), torch.rand(4, 3), torch.rand(4))):
        with using(sites, dict(zip(names, coefficients, strict=True))):
            found = net(x)
        expected = by_hand(net, x, branches, list(coefficients), [0] * 4)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    with using(sites, ["first", "second"]):
        others = net(x)[:, 1:]
    with using(sites):
        assert torch.equal(others, net(x)[:, 1:])  # not one bit of the other tokens


def test_behind_padding_the_class_token_is_the_first_that_counts() -> None:
    net, _, branches = layer_with_both()
    x = draw(3, 4, 6)
    mask = torch.tensor([[True] * 4, [False, False, True, True], [False, True, True, False]])
    with counting(mask):
        found = net(x)
    expected = by_hand(net, x, branches, [1.0] * 3, [0, 2, 1])
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_formula(masked: bool) -> None:
    net, _, branches = layer_with_both()
    x, slope = draw(3, 4, 6).requires_grad_(True), draw(3, 4, 8, name="slope")
    factors = [f.requires_grad_(True) for b in branches for f in (b.A, b.B)]
    mask = torch.tensor([[True] * 4, [False, False, True, True], [False, True, True, False]])
    first = torch.tensor([0, 2, 1] if masked else [0, 0, 0])
    if masked:
        with counting(mask):
            y = net(x)
    else:
        y = net(x)
    found = torch.autograd.grad((y * slope).sum(), [x, *factors])
    chosen = torch.zeros(3, 4, 1).scatter_(1, first[:, None, None], 1.0)
    plain = x @ net[0].weight.T + net[0].bias
    for branch in branches:
        update = branch.scale * (x @ branch.A.T @ branch.B.T)
        update = update * chosen if branch.tokens == "class" else update
        plain = plain + torch.nn.functional.pad(update, (branch.rows.start, 8 - branch.rows.stop))
    expected = torch.autograd.grad((plain * slope).sum(), [x, *factors])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_stored_branch_keeps_its_tokens_and_others_are_stored_as_before() -> None:
    net, _, branches = layer_with_both()
    state = net.state_dict()
    assert [k for k in state if k.endswith("class_token")] == [
        "0.branches.first.0.class_token", "0.branches.second.0.class_token",
    ]  # fmt: skip
    fresh = nn.Sequential(nn.Linear(6, 8)).requires_grad_(False)
    (site,) = adapt(fresh, "0")
    grow([site], "first", 3, scale=2.0)  # the same shapes, for all tokens: it must give way
    fresh.load_state_dict(state)
    x = draw(4, 5, 6)
    assert torch.equal(fresh(x), net(x))
    assert [b.tokens for n in ("all", "first", "second") for b in site.layer.of(n)] == [b.tokens for b in branches]
    kept = site.layer.of("first")[0]
    fresh.load_state_dict(state)
    assert site.layer.of("first")[0] is kept


def test_what_has_no_class_token_or_no_equal_weight_is_refused_in_one_line() -> None:
    net, sites, _ = layer_with_both()
    with pytest.raises(ValueError, match="adapter 'first' acts on class tokens alone, so it cannot become part") as e:
        merge(sites, "first")
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"shape \(4, 6\), not \(samples, tokens, width\): no class token"):
        net(draw(4, 6))
    convolution = adapt(nn.Sequential(nn.Conv2d(2, 2, 1)), "0")
    with pytest.raises(ValueError, match="layer '0' is a convolution, which has no class token"):
        grow(convolution, "a", 1, tokens="class")
    with pytest.raises(ValueError, match="tokens 'patches' is unknown; use one of all, class"):
        grow(sites, "b", 1, tokens="patches")


# networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_short_cut_of_the_last_block_gives_the_features_and_gradients_of_the_whole_model(kind: str) -> None:
    backbone, x = vit(**KINDS[kind]), draw(5, 3, 16, 16)
    plain = backbone.model(x)
    branches = fill([*grow(backbone.sites(*ROLES), "a", 3, tokens="class"), *grow(backbone.sites("key"), "b", 2)])
    torch.testing.assert_close(backbone(x), backbone.model(x), rtol=1e-5, atol=1e-5)
    assert size_of(backbone(x) - plain, plain) > 0.05
    factors = [f.requires_grad_(True) for b in branches for f in (b.A, b.B)]
    slopes = [torch.autograd.grad(f(x).square().sum(), factors) for f in (backbone, backbone.model)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()) + 1e-6)


def test_backbones_whose_features_are_not_the_class_token_are_refused() -> None:
    for backbone in (vit(), encoder(pooling="first")):
        backbone.check_class_token_alone("this")
    pooled = vit(global_pool="avg", class_token=True)
    both = vit()
    both.pool = "class+mean"
    for backbone, reason in (
        (pooled, "makes its features of other tokens, too"),
        (both, "makes its features of other tokens, too"),
        (encoder(pooling="mean"), "(has no class token|makes its features of other tokens, too)"),
        (tiny_residual_backbone(), "has no class token"),
    ):
        with pytest.raises(ValueError, match=f"this acts on class tokens alone, but '.*' {reason}; let it") as refusal:
            backbone.check_class_token_alone("this")
        assert "\n" not in str(refusal.value)


# the claim: bases of class tokens are exact for branches on class tokens ---------------------------------------------


def lively() -> Backbone:
    """The tiny ViT with weights of a size at which attention chooses, and a class token of its own."""
    backbone = tiny_backbone()
    for name, layer in backbone.model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data = draw(*layer.weight.shape, name=name) / layer.weight[0].numel() ** 0.5
    model: Any = backbone.model
    model.cls_token.data = draw(*model.cls_token.shape, name="class token")
    return backbone


def protected_updates(backbone: Backbone, sites: tuple[Site, ...], old: Tensor, tokens: str) -> None:
    """Random branches of a fifth of each weight's norm whose A is orthogonal to all class tokens of old images."""
    signatures = Signatures(sites)
    with gather(backbone.model, sites) as inputs:
        backbone(old)
    signatures.extend(inputs, 1.0)
    for site, branch in zip(sites, fill(grow(sites, "new", 4, tokens=tokens)), strict=True):
        branch.A.data = signatures[site.name].outside(branch.A.data)
        norm = branch.delta(site.layer.weight.shape).norm()
        branch.B.data *= 0.2 * site.layer.weight[branch.rows].norm() / norm


SITES = [("query",), ("key+value",), ("out",), ("mlp",), ("query", "out", "mlp")]


@torch.no_grad()
@pytest.mark.parametrize("roles", SITES, ids="-".join)
def test_old_features_stay_under_branches_on_class_tokens_and_move_under_branches_on_all(roles: Any) -> None:
    old, new = draw(8, 3, 32, 32, name="old"), draw(8, 3, 32, 32, name="new")
    changes: dict[str, tuple[float, float]] = {}
    for tokens in ("class", "all"):
        backbone = lively()
        before = backbone(old), backbone(new)
        protected_updates(backbone, backbone.sites(*roles), old, tokens)
        changes[tokens] = size_of(backbone(old) - before[0], before[0]), size_of(backbone(new) - before[1], before[1])
    assert changes["class"][0] < 1e-5
    assert changes["all"][0] > 1e-2
    assert changes["class"][1] > 1e-2


@torch.no_grad()
def test_patches_of_old_images_stay_too_though_they_read_the_class_token() -> None:
    """Patches of new images do move: their attention reads the class token. So gradients flow through patches."""
    old, new = draw(8, 3, 32, 32, name="old"), draw(8, 3, 32, 32, name="new")
    backbone = lively()
    model: Any = backbone.model
    before = model.forward_features(old), model.forward_features(new)
    protected_updates(backbone, backbone.sites("query", "out", "mlp"), old, "class")
    after = model.forward_features(old), model.forward_features(new)
    assert size_of((after[0] - before[0])[:, 1:], before[0]) < 1e-5
    assert size_of((after[1] - before[1])[:, 1:], before[1]) > 1e-3


# DualLoRA with them --------------------------------------------------------------------------------------------------

CLASS: dict[str, Any] = {
    "tokens": "class", "sites": ["query", "out", "mlp"], "energy": 1.0, "epochs": 3, "batch_size": 8, "lr": 0.02,
    "rank": 4, "residual_rank": 4, "residual": "current",
}  # fmt: skip


def task(number: int) -> Task:
    every, classes = images(9, 6, "train"), tuple(range(3 * number, 3 * number + 3))
    index = torch.isin(every.labels, torch.tensor(classes)).nonzero()[:, 0]
    return Task(number, f"task {number}", classes, tuple(map(str, classes)), every.subset(index))


def learn(method: DualLoRA, data: Task) -> None:
    fit = fit_for(method)
    fit.augmentation = None  # the images whose class tokens are protected
    fit.begin(str(data.id))
    method.learn(data, fit)


@torch.no_grad()
def features(method: DualLoRA, data: Task) -> Tensor:
    view = plain_view(of_images(method.backbone.transform, "the test"))
    return method.features(data.train.batch(torch.arange(len(data.train)), view))


@pytest.mark.parametrize("options", [
    {}, {"gate": "vector"}, {"gate": "off"}, {"residual": "none"}, {"orthogonal": False},
], ids=str)  # fmt: skip
def test_a_learned_task_leaves_the_features_of_the_one_before_as_they_were(options: dict[str, Any]) -> None:
    method = configured(DualLoRA, lively(), **(CLASS | options))
    learn(method, task(0))
    old, new = features(method, task(0)), features(method, task(1))
    learn(method, task(1))
    assert size_of(features(method, task(0)) - old, old) < 1e-5
    assert size_of(features(method, task(1)) - new, new) > 1e-2
    assert not method.merges


def test_with_the_same_bases_adapters_on_all_tokens_move_old_features() -> None:
    method = configured(DualLoRA, lively(), **(CLASS | {"tokens": "all"}))
    learn(method, task(0))
    old = features(method, task(0))
    learn(method, task(1))
    assert size_of(features(method, task(0)) - old, old) > 1e-2
