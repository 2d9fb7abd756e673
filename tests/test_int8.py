"""Frozen weights in 8 bits: what is kept, that gradients pass, what stays equal, and who cannot do with them."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import tiny_text_backbone
from streams import batch, build, learn_all, stream, tiny_backbone
from torch import Tensor, nn

from lamella import Learner, load_backbone
from lamella.adapters.adapter import adapt, grow, merge
from lamella.adapters.int8 import Int8Linear, has_int8, levels_of, to_float, to_int8
from lamella.backbones import Backbone
from lamella.learner.costs import parameter_counts
from lamella.learner.export.network import fixed
from lamella.methods.parts import MeanWeights, Merged
from lamella.testing.checks import CHECKS
from lamella.testing.trial import Trial
from lamella.training.recipe import LoRA

KEEPING = ("seq-lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("color", "sdlora", "streaming-lda")))
"""Methods that change no weight of the backbone."""
CHANGING = ("inflora", "olora", "replay", "seq-finetune")


def in_int8(backbone: Backbone) -> Backbone:
    to_int8(backbone.model)
    return Backbone(backbone.model, name=backbone.name, width=backbone.width, transform=backbone.transform)


def tiny_int8() -> Backbone:
    return in_int8(tiny_backbone())


def two_layers() -> tuple[nn.Sequential, nn.Sequential]:
    """A layer in 8 bits, and one in float32 with the same weight."""
    net = nn.Sequential(nn.Linear(6, 8).requires_grad_(False))
    to_int8(net)
    same = copy.deepcopy(net)
    to_float(same)
    assert type(same[0]) is nn.Linear
    return net, same


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# one layer -----------------------------------------------------------------------------------------------------------


def test_each_entry_is_within_half_a_level_and_levels_are_whole_numbers_of_8_bits() -> None:
    W = drawn(7, 33) * torch.logspace(-3, 3, 7)[:, None]
    W[3] = 0
    levels, scales = levels_of(W)
    assert levels.dtype == torch.int8
    assert int(levels.abs().max()) == 127
    assert ((levels * scales[:, None] - W).abs() <= 0.5001 * scales[:, None]).all()
    assert scales[3] == 0
    assert not levels[3].any()


def test_quantising_again_changes_no_bit() -> None:
    W = drawn(64, 96, seed=1)
    levels, scales = levels_of(W)
    again, same = levels_of(levels * scales[:, None])
    assert torch.equal(levels, again)
    assert torch.equal(scales, same)


@pytest.mark.parametrize("rows", [slice(None), slice(2, 5)])
def test_outputs_and_gradients_are_those_of_a_float_layer_with_the_same_weight(rows: slice) -> None:
    found: list[tuple[Tensor, ...]] = []
    for model in two_layers():
        sites = adapt(model, "0", rows)
        branch = grow(sites, "new", 2, generator=torch.Generator().manual_seed(0))[0]
        branch.B.data = drawn(*branch.B.shape, seed=2)
        x, trained = drawn(3, 5, 6).requires_grad_(), [*branch.factors, sites[0].layer.bias]
        for factor in trained:
            factor.requires_grad_(True)
        y = model(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *trained])))
        with torch.no_grad():
            assert torch.allclose(model(x), y)
            whole, part = sites[0].layer.forward_parts(x, (slice(0, 1), slice(0, 8)), (slice(0, 5), slice(3, 6)))
            assert torch.allclose(whole, y[:, :1], atol=1e-6)
            assert torch.allclose(part, y[:, :, 3:6], atol=1e-6)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_a_pass_keeps_for_the_backward_pass_has_no_weight_in_float() -> None:
    net = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 50)).requires_grad_(False)
    to_int8(net)
    x = drawn(2, 50).requires_grad_()
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t):
        net(x).sum()
    assert sum(kept.values()) < 1.2 * 2 * 50 * 40, "levels of a byte, and scales"


@pytest.mark.parametrize("form", ["dora", "vera"])
def test_other_forms_of_branches_act_as_beside_a_float_weight(form: str) -> None:
    outputs = []
    for model in two_layers():
        branch = grow(adapt(model, "0"), "new", 2, generator=torch.Generator().manual_seed(0), form=form)[0]
        for k, factor in enumerate(branch.factors):
            factor.data = drawn(*factor.shape, seed=k)
        outputs.append(model(drawn(3, 6)))
    torch.testing.assert_close(*outputs)


# networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [tiny_backbone, partial(tiny_text_backbone, "bert"), partial(tiny_text_backbone, "t5")]
)
def test_features_are_near_those_of_float_weights_and_a_quarter_of_the_bytes(make: Any) -> None:
    plain, kept = make(), in_int8(make())
    x = plain.example(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = plain(x), kept(x)
    assert float((found - wanted).norm() / wanted.norm()) < 0.05
    assert not torch.equal(found, wanted)
    linear = [m for m in make().model.modules() if isinstance(m, nn.Linear)]
    weights = sum(m.weight.nbytes for m in linear)
    layers = [m for m in kept.model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == len(linear)
    assert sum(layer.levels.nbytes for layer in layers) == weights // 4
    assert kept.weights_sha256 != plain.weights_sha256
    assert [str(kept.device)] == ["cpu"]
    to_float(kept.model)
    assert not has_int8(kept.model)
    assert kept.model.state_dict().keys() == plain.model.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(kept(x), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("check", [c for c in CHECKS if any(w in c.__name__ for w in ("interrupted", "only_where"))])
def test_methods_that_change_no_weight_keep_the_contract(name: str, check: Any) -> None:
    check(Trial(lambda seed: build(name, seed, tiny_int8())))


def test_predictions_of_a_method_that_learned_are_near_those_on_float_weights() -> None:
    scenario = stream()
    methods = [
        learn_all(build("seq-lora", backbone=b, epochs=3), scenario).eval() for b in (tiny_backbone(), tiny_int8())
    ]
    x = batch(methods[0], scenario.test(0))
    with torch.no_grad():
        wanted, found = (m.predict(x) for m in methods)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_a_network_of_float_weights_is_exported() -> None:
    method = learn_all(build("seq-lora", backbone=tiny_int8()), stream()).eval()
    network = fixed(method)
    x = batch(method, stream().test(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x), method.predict(x), rtol=1e-3, atol=1e-4)
    assert network.backbone.model.state_dict().keys() == tiny_backbone().model.state_dict().keys()
    plain = learn_all(build("seq-lora", backbone=tiny_backbone()), stream())
    assert parameter_counts(method) == parameter_counts(plain)


# what cannot do with them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGING)
def test_methods_that_change_weights_are_refused_when_they_are_made(name: str) -> None:
    table = {"name": "test_vit", "weights": "random", "size": 32, "storage": "int8"}
    with pytest.raises(
        ValueError, match=rf"method '{name}' (folds|trains).*storage is 'int8'.*such as seq-lora"
    ) as why:
        Learner.create(backbone=table, method={"name": name}, fit={"device": "cpu"})
    assert "\n" not in str(why.value)


def test_what_writes_to_weights_is_refused() -> None:
    backbone = tiny_int8()
    with pytest.raises(ValueError, match="kept in 8 bits, so they cannot be trained"):
        backbone.used_weights()
    sites = LoRA().attach(backbone)
    grow(sites, "new", 2)
    with pytest.raises(TypeError, match="keeps its weight in 8 bits, where the update of a branch would be rounded"):
        merge(sites, "new")
    with pytest.raises(ValueError, match="start 'pissa' moves a part of the weight"):
        LoRA(start="pissa").attach(backbone)
    for part in (Merged, MeanWeights):
        with pytest.raises(ValueError, match="merge and mean_weights predict with changed weights"):
            part(build("seq-lora", backbone=tiny_int8()))
    with pytest.raises(ValueError, match="no linear layers whose weights could be kept in 8 bits"):
        to_int8(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(ValueError, match="storage 'int4' is unknown; use one of float32, int8"):
        load_backbone("test_vit", weights="random", storage="int4")


# a model's folder ----------------------------------------------------------------------------------------------------


def test_a_model_is_stored_and_loaded_with_it(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(tiny_backbone().model.state_dict(), weights)
    table = {"name": "test_vit", "weights": str(weights), "size": 32, "storage": "int8"}
    learner = Learner.create(backbone=table, method={"name": "seq-lora", "epochs": 1, "rank": 2}, fit={"device": "cpu"})
    learner.learn(stream()[0])
    learner.save(tmp_path / "model")
    weights.unlink()  # the folder has a copy, in float
    x = batch(learner.method, stream().test(0))
    again = Learner.load(tmp_path / "model")
    assert has_int8(again.backbone.model)
    assert torch.equal(again.logits(x), learner.logits(x))
