"""Frozen weights in few bits: what is kept, that gradients pass, what stays equal, and who cannot do with them."""

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
from lamella.adapters.few_bits import (
    STORAGES,
    FewBitsLinear,
    Int8Linear,
    NF4Linear,
    has_few_bits,
    normal_float,
    store_in,
    to_float,
)
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


FEW = tuple(name for name, kind in STORAGES.items() if kind is not None)


def in_few_bits(backbone: Backbone, storage: str = "int8") -> Backbone:
    store_in(storage, backbone.model)
    return Backbone(backbone.model, name=backbone.name, width=backbone.width, transform=backbone.transform)


def tiny_few_bits() -> Backbone:
    return in_few_bits(tiny_backbone())


def two_layers(storage: str) -> tuple[nn.Sequential, nn.Sequential]:
    """A layer in few bits, and one in float32 with the same weight."""
    net = nn.Sequential(nn.Linear(6, 8).requires_grad_(False))
    store_in(storage, net)
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
    levels, scales = Int8Linear.encode(W)
    assert levels.dtype == torch.int8
    assert int(levels.abs().max()) == 127
    assert ((levels * scales - W).abs() <= 0.5001 * scales).all()
    assert scales[3] == 0
    assert not levels[3].any()


def test_the_levels_of_4_bits_are_those_that_were_published() -> None:
    published = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    torch.testing.assert_close(normal_float(), torch.tensor(published), rtol=0, atol=3e-7)


def test_each_entry_has_the_nearest_of_16_levels_of_its_block() -> None:
    W = drawn(5, 150) * torch.logspace(-3, 3, 5)[:, None]
    W[3, :64] = 0
    codes, scales = NF4Linear.encode(W)
    assert codes.shape == (5, 96)
    assert codes.dtype == torch.uint8
    assert scales.shape == (5, 3)
    found = NF4Linear.decode(codes, scales, 150)
    assert found.shape == W.shape
    for row, column in [(0, 0), (1, 63), (2, 64), (3, 10), (3, 70), (4, 128), (4, 149)]:
        block = W[row, column // 64 * 64 : column // 64 * 64 + 64]
        choices = float(block.abs().max().bfloat16()) * normal_float()
        assert found[row, column] == choices[(choices - W[row, column]).abs().argmin()]
    assert codes[0, 0] >> 4 == (normal_float() - W[0, 0] / scales[0, 0].float()).abs().argmin()


def test_layers_that_share_a_weight_stay_as_they_are() -> None:
    net = nn.ModuleDict({"embedding": nn.Embedding(8, 6), "between": nn.Linear(6, 6), "last": nn.Linear(6, 8)})
    net["last"].weight = net["embedding"].weight
    store_in("nf4", net)
    assert [type(layer) for layer in net.values()] == [nn.Embedding, NF4Linear, nn.Linear]


@pytest.mark.parametrize("kind", [STORAGES[name] for name in FEW])
def test_quantising_again_changes_no_bit(kind: type[FewBitsLinear]) -> None:
    W = drawn(64, 96, seed=1)
    levels, scales = kind.encode(W)
    again, same = kind.encode(kind.decode(levels, scales, 96))
    assert torch.equal(levels, again)
    assert torch.equal(scales, same)


@pytest.mark.parametrize("rows", [slice(None), slice(2, 5)])
@pytest.mark.parametrize("storage", FEW)
def test_outputs_and_gradients_are_those_of_a_float_layer_with_the_same_weight(storage: str, rows: slice) -> None:
    found: list[tuple[Tensor, ...]] = []
    for model in two_layers(storage):
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
    store_in("int8", net)
    x = drawn(2, 50).requires_grad_()
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t):
        net(x).sum()
    assert sum(kept.values()) < 1.2 * 2 * 50 * 40, "levels of a byte, and scales"


@pytest.mark.parametrize("form", ["dora", "vera"])
def test_other_forms_of_branches_act_as_beside_a_float_weight(form: str) -> None:
    outputs = []
    for model in two_layers("int8"):
        branch = grow(adapt(model, "0"), "new", 2, generator=torch.Generator().manual_seed(0), form=form)[0]
        for k, factor in enumerate(branch.factors):
            factor.data = drawn(*factor.shape, seed=k)
        outputs.append(model(drawn(3, 6)))
    torch.testing.assert_close(*outputs)


# networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [tiny_backbone, partial(tiny_text_backbone, "bert"), partial(tiny_text_backbone, "t5")]
)
@pytest.mark.parametrize(("storage", "share", "near"), [("int8", 1 / 4, 0.05), ("nf4", 1 / 8, 0.5)])
def test_features_are_near_those_of_float_weights_and_codes_are_small(
    make: Any, storage: str, share: float, near: float
) -> None:
    plain, kept = make(), in_few_bits(make(), storage)
    x = plain.example(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = plain(x), kept(x)
    assert float((found - wanted).norm() / wanted.norm()) < near
    assert not torch.equal(found, wanted)
    linear = [m for m in make().model.modules() if isinstance(m, nn.Linear)]
    filled = sum(m.out_features * (-(-m.in_features // 64) * 64 if storage == "nf4" else m.in_features) for m in linear)
    layers = [m for m in kept.model.modules() if isinstance(m, FewBitsLinear)]
    assert len(layers) == len(linear)
    assert sum(layer.codes.nbytes for layer in layers) == 4 * filled * share
    assert kept.weights_sha256 != plain.weights_sha256
    assert [str(kept.device)] == ["cpu"]
    to_float(kept.model)
    assert not has_few_bits(kept.model)
    assert kept.model.state_dict().keys() == plain.model.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(kept(x), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("check", [c for c in CHECKS if any(w in c.__name__ for w in ("interrupted", "only_where"))])
def test_methods_that_change_no_weight_keep_the_contract(name: str, check: Any) -> None:
    check(Trial(lambda seed: build(name, seed, tiny_few_bits())))


def test_predictions_of_a_method_that_learned_are_near_those_on_float_weights() -> None:
    scenario = stream()
    methods = [
        learn_all(build("seq-lora", backbone=b, epochs=3), scenario).eval() for b in (tiny_backbone(), tiny_few_bits())
    ]
    x = batch(methods[0], scenario.test(0))
    with torch.no_grad():
        wanted, found = (m.predict(x) for m in methods)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_a_network_of_float_weights_is_exported() -> None:
    method = learn_all(build("seq-lora", backbone=tiny_few_bits()), stream()).eval()
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
    backbone = tiny_few_bits()
    with pytest.raises(ValueError, match="kept in few bits, so they cannot be trained"):
        backbone.used_weights()
    sites = LoRA().attach(backbone)
    grow(sites, "new", 2)
    with pytest.raises(TypeError, match="keeps its weight in few bits, where the update of a branch would be rounded"):
        merge(sites, "new")
    with pytest.raises(ValueError, match="start 'pissa' moves a part of the weight"):
        LoRA(start="pissa").attach(backbone)
    for part in (Merged, MeanWeights):
        with pytest.raises(ValueError, match="merge and mean_weights predict with changed weights"):
            part(build("seq-lora", backbone=tiny_few_bits()))
    with pytest.raises(ValueError, match="no linear layers whose weights could be kept in few bits"):
        store_in("int8", nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(ValueError, match="storage 'int4' is unknown; use one of float32, int8, nf4"):
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
    assert has_few_bits(again.backbone.model)
    assert torch.equal(again.logits(x), learner.logits(x))
