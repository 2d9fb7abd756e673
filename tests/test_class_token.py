"""The last block for the class token alone: the same features and gradients, and nothing hidden from who looks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import tiny_backbone
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lamella.adapters.adapter import Site, adapt, grow, using, watch
from lamella.backbones import Backbone
from lamella.backbones.class_token import is_class_token
from lamella.common.randomness import generator

ROLES = ("query", "key+value", "out", "mlp")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "layer scale, norms of queries and keys": {"init_values": 0.5, "qk_norm": True},
    "norms of everything": {"scale_attn_norm": True, "scale_mlp_norm": True, "pre_norm": True},
    "no bias": {"qkv_bias": False},
}


def vit(**options: Any) -> Backbone:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
        model = VisionTransformer(**size, **options)  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return Backbone(model, name="vit", width=24, transform=replace(tiny_backbone().transform, size=16))


def images(n: int = 5) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=generator(0, "images"))


def adapter(backbone: Backbone, *roles: str) -> tuple[Site, ...]:
    sites = backbone.sites(*roles)
    for i, branch in enumerate(grow(sites, "a", 3)):
        branch.A.data = 0.3 * torch.randn(branch.A.shape, generator=generator(i, "A"))
        branch.B.data = 0.3 * torch.randn(branch.B.shape, generator=generator(i, "B"))
    return sites


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_whole_model(kind: str) -> None:
    backbone, x = vit(**KINDS[kind]), images()
    assert is_class_token(backbone.model)
    plain = backbone.model(x)
    torch.testing.assert_close(backbone(x), plain, rtol=1e-5, atol=1e-5)
    adapter(backbone, *ROLES)
    adapted = backbone.model(x)
    torch.testing.assert_close(backbone(x), adapted, rtol=1e-5, atol=1e-5)
    assert float((adapted - plain).abs().max()) > 0.1


def test_gradients_are_those_of_the_whole_model() -> None:
    backbone, x = vit(), images()
    factors = [f for site in adapter(backbone, *ROLES) for b in site.layer.of("a") for f in (b.A, b.B)]
    for factor in factors:
        factor.requires_grad_(True)
    found, expected = (torch.autograd.grad(f(x).square().sum(), factors) for f in (backbone, backbone.model))
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_coefficients_of_each_image_act_as_in_the_whole_model() -> None:
    backbone, x = vit(), images()
    sites = adapter(backbone, "query", "value")
    for coefficient in (torch.linspace(-1, 1, 5), lambda h: h.mean((1, 2)).sigmoid()):
        with using(sites, {"a": coefficient}):
            torch.testing.assert_close(backbone(x), backbone.model(x), rtol=1e-5, atol=1e-5)


def test_the_products_left_out_are_those_of_the_other_tokens() -> None:
    """Query, output and MLP are 1 + 1 + 8 products d x d a token, and attention has two of tokens x d a query."""
    d, tokens, n = 24, 17, 5
    backbone, x = vit(), images(n)
    adapter(backbone, "key+value")  # whose products are of all tokens either way
    operations: list[int] = []
    for run in (backbone.model, backbone):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run(x)
        operations.append(counter.get_total_flops())
    assert operations[0] - operations[1] == 2 * n * (tokens - 1) * (10 * d * d + 2 * tokens * d)


@pytest.mark.parametrize("role", ["key+value", "out", "mlp"])
def test_whoever_watches_a_layer_sees_all_tokens(role: str) -> None:
    backbone, x = vit(), images()
    sites = adapter(backbone, role)
    with watch(sites, lambda _: Seen()) as whole:
        backbone.model(x)
    with watch(sites, lambda _: Seen()) as seen:
        features = backbone(x)
    torch.testing.assert_close(features, backbone.model(x), rtol=1e-5, atol=1e-5)
    for name, inputs in seen.items():
        (a,), (b,) = inputs.shown, whole[name].shown
        assert a.shape == (5, 17, b.shape[2])
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Seen:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, x: Tensor) -> None:
        self.shown.append(x)


def test_a_gate_behind_the_attention_sees_all_tokens() -> None:
    backbone, x = vit(), images()
    sites = adapter(backbone, "mlp")
    with using(sites, {"a": lambda h: h.mean((1, 2)).sigmoid()}):
        assert torch.equal(backbone(x), backbone.model(x))


@pytest.mark.parametrize("place", ["norm", "blocks.2", "blocks.2.mlp", "blocks.2.attn.qkv"])
def test_a_hook_sees_all_tokens(place: str) -> None:
    backbone, x, shapes = vit(), images(), []
    backbone.model.get_submodule(place).register_forward_hook(lambda m, args, out: shapes.append(out.shape[:2]))
    backbone(x)
    assert shapes == [(5, 17)]


def test_a_backward_hook_sees_the_gradients_of_all_tokens() -> None:
    backbone, shapes = vit(), []
    adapter(backbone, "value")[0].layer.of("a")[0].B.requires_grad_(True)
    backbone.model.get_submodule("blocks.2").register_full_backward_hook(
        lambda m, of_x, of_y: shapes.append(of_y[0].shape)
    )
    backbone(images()).sum().backward()
    assert [tuple(shape) for shape in shapes] == [(5, 17, 24)]


class Doubled(nn.Linear):
    """Reads its weight in its own way, as a quantised layer does."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_part_that_was_replaced_later_computes_in_its_own_way() -> None:
    backbone, x = vit(), images()
    backbone.model.set_submodule("blocks.2.attn.qkv", Doubled(24, 72))
    assert torch.equal(backbone(x), backbone.model(x))


def test_models_that_read_other_tokens_run_as_they_are() -> None:
    for options in ({"global_pool": "avg"}, {"global_pool": "map"}, {"class_token": False, "global_pool": "max"}):
        backbone = vit(**options)
        assert not is_class_token(backbone.model)
        assert torch.equal(backbone(images()), backbone.model(images()))
    assert not is_class_token(nn.Linear(2, 2))


def test_dropout_draws_the_numbers_that_it_would_have_drawn() -> None:
    backbone, x = vit(proj_drop_rate=0.5), images()
    backbone.train()
    drawn: list[Tensor] = []
    for run in (backbone, backbone.model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            drawn.append(run(x))
    assert torch.equal(*drawn)


# passes that only watchers look at -----------------------------------------------------------------------------------


def shown(sites: tuple[Site, ...], run: Callable[[], Any]) -> dict[str, list[Tensor]]:
    with watch(sites, lambda _: Seen()) as seen:
        run()
    return {name: inputs.shown for name, inputs in seen.items()}


@pytest.mark.parametrize(("roles", "blocks"), [(("key+value",), None), (("key+value", "mlp"), 2), (ROLES, None)])
def test_layers_are_shown_what_a_whole_pass_shows_them(roles: tuple[str, ...], blocks: int | None) -> None:
    backbone, x = vit(), images()
    sites = backbone.sites(*roles, blocks=blocks)
    after: list[int] = []
    backbone.model.norm.register_forward_hook(lambda *_: after.append(1))
    whole, part = shown(sites, lambda: backbone.model(x)), shown(sites, lambda: backbone.show(x, sites))
    assert after == [1]  # in the whole pass only
    assert whole.keys() == part.keys()
    for name, inputs in whole.items():
        assert all(torch.equal(a, b) for a, b in zip(inputs, part[name], strict=True))
    assert not any(site.layer.watchers for site in sites)


class Twice(nn.Module):
    """Calls one attention layer twice a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"0": nn.ModuleDict({"qkv": nn.Linear(3, 3)})})

    def forward(self, x: Tensor) -> Tensor:
        layer = self.attn["0"]["qkv"]  # type: ignore[index]
        return F.relu(layer(layer(x.mean((2, 3)))))


def test_a_layer_that_is_called_twice_is_shown_both_inputs() -> None:
    backbone = Backbone(Twice(), name="twice", width=3, transform=tiny_backbone().transform)
    sites = backbone.sites("key")
    assert [len(inputs) for inputs in shown(sites, lambda: backbone.show(images(), sites)).values()] == [2]


def test_a_layer_that_no_one_counted_is_shown_all_the_same() -> None:
    backbone, x = vit(), images()
    sites = (*backbone.sites("key", blocks=1), *adapt(backbone.model, "blocks.2.mlp.fc1"))
    seen = shown(sites, lambda: backbone.show(x, sites))
    assert [len(inputs) for inputs in seen.values()] == [1, 1]
