"""DLC: what plugins may change, what they must not, and that all tails at once are the tails one after the other."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    Spy,
    build,
    configured,
    draw,
    fit_for,
    images,
    learn_all,
    source,
    stream,
    tiny_backbone,
    tiny_residual_backbone,
)
from torch import Tensor, nn

from lamella.adapters.adapter import adapt, grow
from lamella.backbones import Backbone, load_backbone
from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.data.transform import plain_view
from lamella.experiments.run import run
from lamella.learner.config.document import build_method, complete, load_config, method_name, readout_names
from lamella.learner.costs import costs_of_base, parameter_counts
from lamella.learner.learner import Learner
from lamella.learner.records import TaskRecord
from lamella.learner.store.state import learned_state, restore_state
from lamella.learner.store.versions import load_model
from lamella.methods.dlc.dlc import DLC
from lamella.methods.dlc.lanes import as_two_convolutions
from lamella.methods.dlc.plugins import Tails, plugin_layers
from lamella.methods.dlc.weighting import WeightingUnit, aggregated
from lamella.methods.shared.classifier import inverse_shares
from lamella.training.checkpoints import Checkpoints


def pixels(method: Any, n: int = 8) -> Tensor:
    return images(6, 4, "test").batch(torch.arange(n), plain_view(method.backbone.transform))


def logits(method: Any, n: int = 8) -> Tensor:
    with torch.no_grad():
        return method.eval().predict(pixels(method, n))


def base_tensors(method: DLC) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in method.base.state_dict().items() if ".branches." not in k}


def plugin_tensors(method: DLC, name: str) -> dict[str, Tensor]:
    state = method.backbone.model.state_dict()
    return {k: v.clone() for k, v in state.items() if f".branches.{name}." in k and k.endswith((".A", ".B"))}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


class Watch(Spy):
    """The real fit; `look` is called before the plugin's training call, and `after` right after it."""

    def __init__(self, method: Any, look: Any = lambda *_: None, after: Any = lambda: None) -> None:
        super().__init__(method, look)
        self.after = after

    def __call__(self, data: Any, loss: Any, params: Any, training: Any, **options: Any) -> list[float]:
        if options.get("name") != "plugin":
            return self.fit(data, loss, params, training, **options)
        losses = super().__call__(data, loss, params, training, **options)
        self.after()
        return losses


def learn_watched(method: DLC, tasks: Sequence[Task], look: Any = lambda *_: None, after: Any = lambda: None) -> DLC:
    watch = Watch(method, look, after)
    for i, task in enumerate(tasks):
        watch.fit.begin(str(i))
        method.learn(task, watch)  # type: ignore[arg-type]
    return method


def tasks(count: int = 3) -> list[Task]:
    scenario = stream(2 * count, count)
    return [scenario[i] for i in range(count)]


@pytest.fixture(scope="module")
def learned() -> DLC:
    return learn_all(build("dlc", lr=1e-2), stream())


def trained_tails(backbone: Backbone, layers: str, factorisation: str, plugins: int = 3) -> Tails:
    """Tails whose plugins have random B, as if they were trained."""
    tails = Tails(backbone, [layers], 2, factorisation)
    for i in range(plugins):
        branches = grow(
            tails.sites, f"plugin-{i}", 2, scale=0.5, generator=generator(0, "A", i), factorisation=factorisation
        )
        for j, branch in enumerate(branches):
            branch.B.data.copy_(0.3 * draw(*branch.B.shape, name=f"B {i} {j}"))
    return tails


# plugins leave the base alone ----------------------------------------------------------------------------------------


def test_phase_two_changes_no_weight_and_no_statistic_of_the_base() -> None:
    method, seen = build("dlc", lr=1e-2), []
    learn_watched(
        method,
        tasks(2),
        lambda *_: seen.append(base_tensors(method)),
        lambda: seen.append(base_tensors(method)),
    )
    assert any("running_mean" in key for key in seen[0])
    assert same(seen[0], seen[1])
    assert same(seen[2], seen[3])
    assert not same(seen[1], seen[2])  # while phase 1 changes them


def test_old_plugins_stay_as_they_are_and_the_new_one_is_trained(learned: DLC) -> None:
    method, seen = build("dlc", lr=1e-2), []
    learn_watched(method, tasks(), after=lambda: seen.append(plugin_tensors(method, "plugin-0")))
    assert len(seen) == 3
    assert len(seen[0]) == 4  # A and B of two convolutions
    assert same(seen[0], seen[1])
    assert same(seen[1], seen[2])
    assert all(v.any() for k, v in plugin_tensors(learned, "plugin-2").items() if k.endswith(".B"))


def test_new_rows_and_columns_may_start_at_zero() -> None:
    method, heads = build("dlc", epochs=1, head_start="zero"), []
    learn_watched(
        method,
        tasks(2),
        lambda *_: heads.append([head.weight.clone() for head in method.heads.heads]),
        lambda: heads.append([head.weight.clone() for head in method.heads.heads]),
    )
    first, learned, second = heads[:3]
    assert not first[0].any()
    assert torch.equal(second[0], F.pad(learned[0], (0, 16)))
    assert learned[0].any()
    assert not second[1].any()


def test_a_new_plugin_leaves_its_features_at_the_bases_exactly() -> None:
    method, found = build("dlc"), []

    def look(loss: Any, data: Any, params: Any) -> None:
        with torch.no_grad():
            x = pixels(method)
            features = method.tails(method.tails.trunk(x), ["", *method.plugins])
            found.append((features, method.base.features(x)))

    learn_watched(method, tasks(2), look)
    for features, base in found:
        assert torch.equal(features[:, -1], features[:, 0])
        torch.testing.assert_close(features[:, 0], base)
    assert not torch.equal(found[1][0][:, 1], found[1][0][:, 0])  # the first one is trained by then


def test_the_base_learns_as_it_would_alone(learned: DLC) -> None:
    alone = learn_all(build("replay", backbone=tiny_residual_backbone()), stream())
    assert same(base_tensors(learned), alone.state_dict())
    with torch.no_grad():
        readouts = learned.eval().readouts(pixels(learned))
        assert torch.equal(readouts["base"], logits(alone))
        assert torch.equal(readouts[""], logits(learned))
    assert not torch.equal(readouts[""], readouts["base"])


# the mathematics of a plugin -----------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 3]), st.sampled_from(["kernel", "conv"]))
def test_a_branch_is_two_convolutions(rank: int, k: int, factorisation: str) -> None:
    (site,) = adapt(nn.Sequential(nn.Conv2d(6, 5, k, bias=False)), "0")
    branch = grow([site], "plugin-0", rank, scale=0.7, generator=generator(0, "A"), factorisation=factorisation)[0]
    branch.B.data.copy_(draw(*branch.B.shape))
    reduce, expand = as_two_convolutions(branch, k)
    whole = torch.einsum("oq,qcij->ocij", expand[:, :, 0, 0], reduce)
    torch.testing.assert_close(whole, branch.delta(site.layer.weight.shape))


def test_the_update_has_rank_r_k_as_a_matrix_of_channels_and_kernel_sides(learned: DLC) -> None:
    for site in learned.tails.sites:
        delta = site.layer.of("plugin-2")[0].delta(site.layer.weight.shape)
        c_out, c_in, k, _ = delta.shape
        values = torch.linalg.svdvals(delta.reshape(c_out * k, c_in * k).double())
        assert float(values[0]) > 1e-3
        assert float(values[2 * k :].max()) < 1e-6 * float(values[0])


@pytest.mark.parametrize("factorisation", ["kernel", "conv"])
@pytest.mark.parametrize("layers", ["last-conv", "last-block", "last-two-stages"])
def test_batched_tails_equal_a_loop(layers: str, factorisation: str) -> None:
    small = load_backbone("test_resnet", weights="random", size=32)  # bottlenecks, 1 x 1 convolutions, strides
    for layer in small.model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.fill_(1.0)  # timm starts the last one of a block at 0, which would hide every plugin
    for backbone in (tiny_residual_backbone(), small):
        tails = trained_tails(backbone, layers, factorisation)
        x, lanes = draw(5, 3, 32, 32), ["plugin-2", "", "plugin-0", "not there"]
        with torch.no_grad():
            z = tails.trunk(x)
            batched, loop, plain = tails(z, lanes), tails(z, lanes, "loop"), backbone(x)
        scale = loop.abs().max()
        torch.testing.assert_close(batched / scale, loop / scale, atol=1e-5, rtol=0)
        torch.testing.assert_close(batched[:, 1] / scale, plain / scale, atol=1e-5, rtol=0)
        torch.testing.assert_close(batched[:, 3], batched[:, 1])
        assert float((loop[:, 0] - loop[:, 2]).abs().max() / scale) > 1e-3


def test_many_images_go_through_the_tails_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tails, lanes = trained_tails(tiny_residual_backbone(), "last-block", "kernel", 2), ["", "plugin-0", "plugin-1"]
    seen: list[int] = []
    batched = tails._batched
    monkeypatch.setattr(tails, "_batched", lambda z, lanes: (seen.append(len(z)), batched(z, lanes))[1])
    with torch.no_grad():
        z = tails.trunk(draw(5, 3, 16, 16))
        whole = tails(z, lanes)
        monkeypatch.setattr("lamella.methods.dlc.plugins.AT_ONCE", 2 * 3 * z[0].numel() + 1)
        torch.testing.assert_close(tails(z, lanes), whole)
    assert seen == [5, 2, 2, 1]


def test_batched_tails_have_the_gradients_of_a_loop() -> None:
    tails = trained_tails(tiny_residual_backbone(), "last-block", "kernel", 2)
    z = tails.trunk(draw(4, 3, 16, 16)).detach()
    factors = [t for site in tails.sites for i in (0, 1) for b in site.layer.of(f"plugin-{i}") for t in (b.A, b.B)]
    slopes = []
    for form in ("batched", "loop"):
        for factor in factors:
            factor.requires_grad_(True)
        features = tails(z, ["", "plugin-0", "plugin-1"], form)
        slopes.append(torch.autograd.grad((features * draw(*features.shape, name="slope")).sum(), factors))
    for first, second in zip(*slopes, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
        assert first.any()
    with pytest.raises(ValueError, match="form 'grouped' is unknown; use one of batched, loop"):
        tails(z, [""], "grouped")


def test_the_base_part_of_a_shared_input_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    tails = trained_tails(tiny_residual_backbone(), "last-conv", "conv")
    with torch.no_grad():
        z = tails.trunk(draw(5, 3, 16, 16))
        seen.clear()
        tails(z, ["", "plugin-0", "plugin-1", "plugin-2"])
    assert seen == [5, 20]  # the block's first convolution carries no plugin here, and sees each image once


# where plugins sit, and what they cost -------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "per_rank"), [
    ("last-conv", 9_216), ("last-block", 18_432), ("last-stage", 34_560), ("last-two-stages", 51_840),
])  # fmt: skip
def test_parameters_of_resnet18_are_those_of_the_formula(layers: str, per_rank: int) -> None:
    """r k^2 (c_in + c_out) summed over the convolutions; the specification's table has these four sums."""
    backbone = load_backbone("resnet18", weights="random", size=32)
    method = configured(DLC, backbone, build("replay", backbone=backbone), layers=[layers], rank=2)
    sites = method.tails.sites
    assert sum(9 * (s.layer.weight.shape[0] + s.layer.weight.shape[1]) for s in sites) == per_rank
    for number in range(2):
        method._grow(Task(number, "", (2 * number, 2 * number + 1), ("a", "b"), images(2, 1, "train")), number)
    assert parameter_counts(method) == {
        "backbone": 11_176_512, "plugins": 2 * 2 * per_rank, "unit": 2 * 513, "head": 4 * (3 * 512 + 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "unit"),
    [({}, 3 * 17), ({"gate": "fixed"}, 0), ({"gate": "softmax"}, 3 * 17), ({"head_start": "zero"}, 3 * 17)],
)
def test_every_variant_learns_and_is_counted(options: dict[str, Any], unit: int) -> None:
    kind = {"epochs": 1, "layers": ["stage3.*"], "factorisation": "conv", "rank": 1, **options}
    method = learn_all(build("dlc", **kind), stream())
    per_plugin = (9 * 12 + 16) + (9 * 16 + 16)  # rank 1: k k c_in + c_out for 12 -> 16 and 16 -> 16 channels
    assert parameter_counts(method) == {
        "backbone": sum(p.numel() for p in tiny_residual_backbone().model.parameters()),
        "plugins": 3 * per_plugin, "head": 6 * (4 * 16 + 1), **({"unit": unit} if unit else {}),
    }  # fmt: skip
    assert torch.isfinite(logits(method)).all()
    again = build("dlc", **kind)
    restore_state(again, learned_state(method))
    assert torch.equal(logits(again), logits(method))


def test_gates_and_columns_grow_by_one_plugin_a_task() -> None:
    method, seen = build("dlc", epochs=1), []
    learn_watched(
        method,
        tasks(),
        lambda *_: seen.append((method.unit.weight.clone(), method.unit.bias.clone(), method.heads)),
        lambda: seen.append((method.unit.weight.clone(), method.unit.bias.clone(), method.heads)),
    )
    assert [len(weight) for weight, _, _ in seen] == [1, 1, 2, 2, 3, 3]
    for (old, bias, heads), (new, new_bias, wide) in pairwise(seen):
        if len(new) > len(old):  # between the end of one task and the start of the next
            assert torch.equal(new[:-1], old)
            assert not new[-1].any()
            assert new_bias.tolist() == [*bias.tolist(), 2.0]
            assert wide.width == heads.width + 16
    assert float(torch.tensor(2.0).sigmoid()) == pytest.approx(0.881, abs=1e-3)


def test_names_of_layers() -> None:
    resnet = load_backbone("resnet18", weights="random", size=32).model
    assert plugin_layers(resnet, ["last-conv"]) == ("layer4.1.conv2",)
    assert plugin_layers(resnet, ["last-block"]) == ("layer4.1.conv1", "layer4.1.conv2")
    assert len(plugin_layers(resnet, ["last-stage"])) == 4  # not those of the shortcut
    assert plugin_layers(resnet, ["layer4.0.downsample.0", "last-conv"]) == ("layer4.0.downsample.0", "layer4.1.conv2")
    small = load_backbone("resnet32", weights="random").model
    assert plugin_layers(small, ["last-block"]) == ("stage3.4.conv1", "stage3.4.conv2")
    assert sum(p.numel() for p in small.parameters()) == 463_504  # the specification's count
    assert len(plugin_layers(small, ["last-two-stages"])) == 20


# gates, aggregation, loss --------------------------------------------------------------------------------------------


def test_gates_by_hand() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [0.0, 5.0]]])
    V, b = torch.tensor([[0.5, 0.0], [0.0, -1.0]]), torch.tensor([2.0, 1.0])
    for kind, expected in (
        ("sigmoid", torch.tensor([[2.5, -1.0]]).sigmoid()),
        ("softmax", torch.tensor([[2.5, -1.0]]).softmax(1)),
        ("fixed", torch.ones(1, 2)),
    ):
        unit = WeightingUnit(2, kind)
        unit.weight, unit.bias = nn.Parameter(V, requires_grad=False), nn.Parameter(b, requires_grad=False)
        torch.testing.assert_close(unit(features), expected)
    gates = torch.tensor([[0.5, 0.1]])
    assert aggregated(features, gates).tolist() == [pytest.approx([1, 2, 1.5, 0, 0, 0.5])]


def test_the_loss_is_the_sum_of_its_two_terms() -> None:
    options = {"auxiliary_weight": 0.5, "balance": "none"}
    method, checked = build("dlc", epochs=1, **options), []

    def look(loss: Any, data: Any, params: list[Any]) -> None:
        x, y = pixels(method), torch.tensor([0, 0, 1, 1, 2, 3, 2, 3])[: 8 if len(method.classes) > 2 else 4]
        x = x[: len(y)]
        weight, bias = params[-2:]  # of the auxiliary classifier
        with torch.no_grad():
            features = torch.stack(
                [method.tails(method.tails.trunk(x), [name], "loop")[:, 0] for name in ("", *method.plugins)], 1
            )
            gates = (features[:, 0] @ method.unit.weight.T + method.unit.bias).sigmoid()
            z = torch.cat([features[:, 0], *(gates[:, [i]] * features[:, i + 1] for i in range(gates.shape[1]))], 1)
            rows = torch.cat([head.weight for head in method.heads.heads])
            classes = F.cross_entropy(z @ rows.T + torch.cat([head.bias for head in method.heads.heads]), y)
            new = y - min(method.heads[-1].ids.tolist()) + 1
            auxiliary = F.cross_entropy(features[:, -1] @ weight.T + bias, new.clamp_min(0))
            torch.testing.assert_close(loss(x, y), classes + 0.5 * auxiliary, atol=1e-4, rtol=1e-4)
        checked.append(len(weight))

    learn_watched(method, tasks(2), look)
    assert checked == [3, 3]  # two classes of the task, and all others as one


# the second reading: a part of phase 2 in which the plugin is alone --------------------------------------------------


class Calls(Spy):
    """The real fit; keeps what each call was given, and what it changed."""

    def __init__(self, method: DLC) -> None:
        super().__init__(method)
        self.method, self.calls = method, []

    def __call__(self, data: Any, loss: Any, params: Any, training: Any, **options: Any) -> list[float]:
        before = {k: v.clone() for k, v in self.method.state_dict().items()}
        groups = list(params)
        result = super().__call__(data, loss, groups, training, **options)
        after = self.method.state_dict()
        changed = {k for k, v in before.items() if not torch.equal(v, after[k])}
        self.calls.append((options.get("name", "train"), training, options.get("crop"), changed, groups))
        return result


def test_alone_a_plugin_is_trained_without_the_unit_and_the_joint_classifier() -> None:
    method = build("dlc", epochs=6, lr=1e-2, alone=0.34, crop=0.5)
    spy = Calls(method)
    for i, task in enumerate(tasks(2)):
        spy.fit.begin(str(i))
        method.learn(task, spy)  # type: ignore[arg-type]
    assert [name for name, *_ in spy.calls] == ["train", "plugin-alone", "plugin"] * 2
    for i in range(2):
        _, alone, together = spy.calls[3 * i : 3 * i + 3]
        assert (alone[1].epochs, together[1].epochs) == (2, 4)
        assert (spy.calls[3 * i][2], alone[2], together[2]) == (None, 0.5, 0.5)  # the base sees what it always sees
        assert alone[3]
        assert all(f".branches.plugin-{i}." in key for key in alone[3])
        assert any(key.startswith("heads.") for key in together[3])
        assert any(key.startswith("unit.") for key in together[3])
        assert alone[4][-1]["weight_decay"] == method.head_weight_decay
        assert [tuple(p.shape) for p in alone[4][-1]["params"]] == [(3, 16), (3,)]  # new, new or other


def test_the_loss_of_a_plugin_alone_is_that_of_new_classes_and_one_other() -> None:
    method = build("dlc", epochs=2, alone=0.5, scale=2.0)
    checked: list[float] = []

    class Look(Spy):
        def __call__(self, data: Any, loss: Any, params: Any, training: Any, **options: Any) -> list[float]:
            groups = list(params)
            if options.get("name") == "plugin-alone":
                x, y = pixels(method), torch.tensor([0, 0, 1, 1, 2, 3, 2, 3])
                for i, factor in enumerate(groups[0]["params"]):
                    factor.data.copy_(0.2 * draw(*factor.shape, name=f"factor {i}"))
                weight, bias = (p.detach().double().numpy() for p in groups[-1]["params"])
                with torch.no_grad():
                    z = method.tails.trunk(x)
                    f = method.tails(z, [method.plugins[-1]], "loop")[:, 0].double().numpy()
                    base = method.tails(z, [""], "loop")[:, 0].double().numpy()
                    found = float(loss(x, y))
                new = method.heads[-1].ids.tolist()
                target = [1 + new.index(c) if c in new else 0 for c in y.tolist()]
                outputs = f @ weight.T + bias
                rows = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(8), target]
                assert found == pytest.approx(rows.mean(), rel=1e-6)
                assert np.abs(f - base).max() > 1e-3
                checked.append(found)
            return self.fit(data, loss, groups, training, **options)

    look = Look(method)
    for i, task in enumerate(tasks(2)):
        look.fit.begin(str(i))
        method.learn(task, look)  # type: ignore[arg-type]
    assert len(checked) == 2


def test_a_scale_multiplies_the_update_of_a_plugin() -> None:
    single, fourfold = (Tails(tiny_residual_backbone(), ["last-conv"], 2, "kernel", scale) for scale in (1.0, 4.0))
    kernels = []
    for tails in (single, fourfold):
        tails.grow("plugin-0", generator(0, "A"))
        (site,) = tails.sites
        (branch,) = site.layer.of("plugin-0")
        branch.B.data.copy_(draw(*branch.B.shape))
        kernels.append(branch.delta(site.layer.weight.shape))
    torch.testing.assert_close(kernels[1], 4 * kernels[0])


def moved(method: DLC) -> Tensor:
    """(plugins,), by which share of their norm the features with each plugin differ from the base's."""
    with torch.no_grad():
        features = method.tails(method.tails.trunk(pixels(method, 24)), ["", *method.plugins])
    change = (features[:, 1:] - features[:, :1]).norm(dim=2) / features[:, :1].norm(dim=2)
    return change.mean(0)


@pytest.mark.slow
def test_plugins_of_the_second_reading_move_features_by_more_than_those_of_the_first() -> None:
    """Of a base that fits its images, so that little of the joint loss is left to plugins."""
    backbone = tiny_residual_backbone
    found = []
    for options in ({}, {"alone": 0.34, "crop": 0.5, "scale": 4.0}):
        network = backbone()
        base = build("wa", backbone=network, epochs=30, lr=3e-3)
        chosen = {"epochs": 6, "batch_size": 8, "lr": 0.01, "layers": ["last-conv"], "rank": 8} | options
        found.append(moved(learn_all(configured(DLC, network, base, **chosen), stream(4, 2))))
    first, second = found
    assert (second > 3 * first).all()
    assert float(second.min()) > 0.02


def test_without_a_part_alone_nothing_is_changed_by_it() -> None:
    plain, rounded = (learn_all(build("dlc", lr=1e-2, **options), stream(4, 2)) for options in ({}, {"alone": 0.1}))
    assert same(learned_state(plain), learned_state(rounded))  # a tenth of two epochs is none


def test_new_rows_are_aligned_or_classes_are_weighed() -> None:
    method = learn_all(build("dlc", epochs=1, lr=1e-2, balance="align"), stream())
    norms = torch.cat([head.weight.norm(dim=1) for head in method.heads.heads])
    assert float(norms[4:].mean()) == pytest.approx(float(norms[:4].mean()), rel=1e-5)
    weights = inverse_shares(torch.tensor([0, 0, 0, 1, 2, 2]), method.classes)
    # 6 images of 3 classes: 2 each would be even
    assert weights.tolist() == pytest.approx([2 / 3, 2, 1, 0, 0, 0])
    assert torch.isfinite(logits(learn_all(build("dlc", epochs=1, balance="weights"), stream()))).all()


def test_phase_two_sees_the_tasks_images_and_the_memory_of_its_start() -> None:
    method, seen = build("dlc", epochs=1), []
    memory: list[list[str]] = []
    learn = method.base.learn
    method.base.learn = lambda task, fit: (memory.append(list(method.base.exemplars.keys)), learn(task, fit))
    every = tasks(3)
    learn_watched(method, every, lambda loss, data, params: seen.append(data.keys))
    assert [len(kept) for kept in memory] == [0, 16, 24]  # 24 in all, of 8 images a class
    for task, kept, keys in zip(every, memory, seen, strict=True):
        assert list(keys[: len(task.train)]) == list(task.train.keys)
        assert [key.split("/", 2)[2] for key in keys[len(task.train) :]] == kept


def test_a_prediction_weighs_the_features_of_each_plugin_by_its_gate(learned: DLC) -> None:
    x = pixels(learned)
    with torch.no_grad():
        features = learned.tails(learned.tails.trunk(x), ["", *learned.plugins])
        gates = learned.unit(features)
        expected = learned.heads(torch.cat([features[:, :1], gates[:, :, None] * features[:, 1:]], 1).flatten(1))
        assert torch.equal(learned.predict(x), expected)


@pytest.mark.parametrize("base", ["icarl", "lwf", "wa", "nearest-mean"])
def test_it_carries_other_bases(base: str) -> None:
    """Those with a memory or without, with a classifier or class means."""
    backbone = tiny_residual_backbone()
    plain = build(base, backbone=backbone, **({} if base == "nearest-mean" else {"epochs": 1}))
    method = learn_all(configured(DLC, backbone, plain, epochs=1, batch_size=16, lr=0.01), stream(4, 2))
    with torch.no_grad():
        readouts = method.eval().readouts(pixels(method))
    assert readouts[""].shape == readouts["base"].shape == (8, 4)
    assert method.classes == method.base.classes == (0, 1, 2, 3)


def test_an_empty_memory_works() -> None:
    backbone = tiny_residual_backbone()
    method = learn_all(build("dlc", epochs=1, backbone=backbone, base=build("replay", backbone=backbone, memory=0)),
                       stream(4, 2))  # fmt: skip
    assert len(method.base.exemplars) == 0
    assert logits(method).shape == (8, 4)


def test_half_precision_trains_and_leaves_the_base_alone() -> None:
    method = build("dlc", epochs=1)
    fit = fit_for(method, precision="bf16")
    for i, task in enumerate(tasks(2)):
        fit.begin(str(i))
        method.learn(task, fit)
    assert {t.dtype for t in method.unit.parameters()} == {torch.float32}
    assert torch.isfinite(logits(method)).all()


# killed and resumed --------------------------------------------------------------------------------------------------


def settings_of(base: str = "replay") -> dict[str, Any]:
    quick = ["batch_size=4", "epochs=1"]
    return load_config("digits", [
        "backbone.name=resnet20", "backbone.weights=random", "backbone.size=8", "method.name=dlc", "method.rank=2",
        f"method.base.name={base}", *(f"method.base.{q}" for q in quick), *(f"method.{q}" for q in quick),
        "method.base.lr=0.01", "method.lr=0.01", "method.base.memory=8", "fit.device=cpu",
        "fit.checkpoint_seconds=0.0",
    ])  # fmt: skip


def outcome(out: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    times = ("seconds", "phase_seconds")
    results = {p.name: json.loads(p.read_text()) for p in sorted(out.glob("results*.json"))}
    kept = {name: {k: sorted(v) if k in times else v for k, v in r.items()} for name, r in results.items()}
    return kept, load_model(out / "model")[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamella.experiments.run.build_scenario", lambda config: stream(4, 2))
        return outcome(run(settings_of(), tmp_path_factory.mktemp("whole") / "run", quiet=True))


@pytest.mark.parametrize("phase", ["train", "plugin"])
def test_interrupted_in_either_phase_it_goes_on_to_the_same_bits(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr("lamella.experiments.run.build_scenario", lambda config: stream(4, 2))
    save, load, saves, found = Checkpoints.save, Checkpoints.load, [], []

    def save_and_stop(self: Checkpoints, task: str, call: str, *rest: Any) -> None:
        save(self, task, call, *rest)
        saves.append((task, call))
        if saves.count(("1", phase)) == 2:
            raise KeyboardInterrupt

    def watched(self: Checkpoints, task: str, call: str) -> Any:
        loaded = load(self, task, call)
        found.extend([] if loaded is None else [(task, call, loaded[1].get("step"))])
        return loaded

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings_of(), tmp_path / "run", quiet=True)
    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(Checkpoints, "load", watched)
    run(settings_of(), tmp_path / "run", resume=True, quiet=True)
    assert found[-1] == ("1", phase, 2)
    results, state = outcome(tmp_path / "run")
    assert results == whole[0]
    assert same(state, whole[1])


def test_one_run_writes_both_results_under_their_names(whole: Any) -> None:
    results, state = whole
    assert {name: (r["method"], r["base_of"]) for name, r in results.items()} == {
        "results.json": ("dlc(replay)", None), "results-replay.json": ("replay", "dlc(replay)"),
    }  # fmt: skip
    counts = results["results.json"]["parameters"]
    assert counts.keys() == {"backbone", "plugins", "unit", "head"}
    assert counts["plugins"] == 2 * 2 * 2 * 9 * (64 + 64)  # two of rank 2 on two convolutions, 64 -> 64 channels
    assert len(state["base.exemplars.labels"]) == 8


def test_the_bases_file_tells_what_the_base_costs_alone(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.experiments.run.build_scenario", lambda config: stream(4, 2))
    config = settings_of()
    config["method"] = config["method"]["base"]
    alone = outcome(run(config, tmp_path / "run", quiet=True))[0]["results.json"]
    results, base = whole[0]["results.json"], whole[0]["results-replay.json"]
    for field in ("stored_bytes", "parameters", "trainable_parameters"):
        assert base[field] == alone[field]
    assert base["stored_bytes"] < results["stored_bytes"]
    assert base["phase_seconds"] == alone["phase_seconds"] == [p for p in results["phase_seconds"] if p != "plugin"]


def test_the_bases_seconds_are_those_of_its_own_calls() -> None:
    seconds = {"train": 5.0, "herding": 1.0, "plugin": 2.5, "total": 9.0}
    records = [
        TaskRecord("first", (0, 1), 16, seconds, 70, {"train": 40, "plugin": 70}),
        TaskRecord("second", (2, 3), 16, {"train": 4.0, "plugin": 2.0, "total": 7.0}, 90, {"train": 44, "plugin": 90}),
    ]
    costs = costs_of_base(build("dlc"), records, 1)
    assert costs["seconds"] == {"learn": [6.5, 5.0]}
    assert costs["phase_seconds"] == {"train": 9.0, "herding": 1.0}
    assert costs["trainable_parameters"] == 44
    records[0].trained = None  # a model of an older version
    assert costs_of_base(build("dlc"), records, 1)["trainable_parameters"] is None


# configuration and bad input -----------------------------------------------------------------------------------------


def table(**method: Any) -> dict[str, Any]:
    return {"backbone": {"name": "resnet20", "weights": "random"}, "method": {"name": "dlc", **method}}


def test_the_base_is_built_from_its_own_table_on_the_same_backbone() -> None:
    config = complete(table(rank=3, base={"name": "wa", "epochs": 7}) | {"run": {"seed": 4}})
    assert config["method"]["base"]["lr"] == 0.1  # completed with its defaults
    assert method_name(config) == "dlc(wa)"
    assert readout_names(config) == ["dlc(wa)", "wa"]
    backbone = tiny_residual_backbone()
    method: Any = build_method(config, backbone)
    assert method.rank == 3
    assert (method.base.recipe.epochs, method.base.seed, method.seed) == (7, 4, 4)
    assert method.base.backbone is backbone
    assert method.changes_backbone
    assert complete(config) == config
    assert load_config("digits", ["method.name=dlc", "method.base.name=lwf"])["run"]["dropped"]


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({}, r"\[method\] lacks the method that 'dlc' learns on; set method.base.name to one of"),
        ({"base": "wa"}, r"method.base = 'wa' should be a table"),
        ({"base": {}}, r"\[method.base\] lacks 'name'; set method.base.name to one of"),
        ({"base": {"name": "wab"}}, "unknown method 'wab'; did you mean 'wa'"),
        ({"base": {"name": "dlc"}}, "method.base.name = 'dlc' cannot be a base; "),
        ({"base": {"name": "joint"}}, "method.base.name = 'joint' cannot be a base; "),
        ({"base": {"name": "wa", "epoch": 3}}, "unknown key 'method.base.epoch'; did you mean 'epochs'"),
        ({"base": {"name": "wa", "lr": "high"}}, "method.base.lr = 'high' should be a number"),
        ({"base": {"name": "wa", "align": {}}}, "unknown key 'method.base.align'"),
        ({"base": {"name": "wa"}, "ranks": 2}, "unknown key 'method.ranks'; did you mean 'rank'"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(method: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as refusal:
        complete(table(**method))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": ["layer9.*"]}, r"plugins find no convolution 'layer9.\*'; use last-conv, .* 'stage3.0.conv2'"),
        ({"layers": ["conv1"]}, "plugins find no convolution 'conv1'"),
        ({"rank": 0}, "rank 0 is too small"),
        ({"factorisation": "svd"}, "factorisation 'svd' is unknown; use one of kernel, conv"),
        ({"scale": 0.0}, "scale is 0.0; it must be above 0"),
        ({"alone": 1.0}, "alone is 1.0; it must be a share of the epochs from 0 to below 1"),
        ({"crop": 0.0}, "crop is 0.0; it must be above 0 and at most 1"),
        ({"gate": "relu"}, "gate 'relu' is unknown; use one of sigmoid, softmax, fixed"),
        ({"head_start": "one"}, "head_start 'one' is unknown; use one of uniform, kaiming, zero"),
        ({"balance": "herding"}, "balance 'herding' is unknown; use one of align, weights, none"),
    ],
)
def test_bad_settings_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as refusal:
        build("dlc", **options)
    assert "\n" not in str(refusal.value)


def test_a_base_or_backbone_that_cannot_carry_plugins_is_refused_at_once() -> None:
    backbone = tiny_residual_backbone()
    for base, text in (
        (
            build("der", backbone=backbone),
            "DER has several networks or experts, so plugins cannot tune one; use replay",
        ),
        (build("memo", backbone=backbone), "MEMO has several networks"),
        (build("replay"), "the base Replay was built on another backbone; give both the same one"),
    ):
        with pytest.raises(ValueError, match=text):
            configured(DLC, backbone, base)
    vit = tiny_backbone()
    with pytest.raises(ValueError, match="no stages of convolutions"):
        configured(DLC, vit, build("replay", backbone=vit))
    adapt(other := tiny_residual_backbone(), "*.stage3.0.conv2")
    with pytest.raises(TypeError, match=r"layer 'stage3.0.conv2' is of the class AdaptedConv2d already, and sites"):
        Tails(other, ["last-conv"])
    Tails(backbone, ["last-conv"]).grow("other", generator(0, "other"))
    with pytest.raises(ValueError, match=r"layer 'stage3.0.conv2' carries adapters of another method"):
        configured(DLC, backbone, build("replay", backbone=backbone))


def test_a_memory_smaller_than_one_image_a_class_is_refused_before_training() -> None:
    backbone = tiny_residual_backbone()
    method = build("dlc", backbone=backbone, base=build("replay", backbone=backbone, memory=1))
    with pytest.raises(ValueError, match="a memory of 1 images cannot hold one of each of 2 classes"):
        learn_all(method, stream(4, 2))


def test_a_learner_is_made_saved_and_loaded(tmp_path: Path) -> None:
    quick = {"epochs": 1, "batch_size": 8, "lr": 0.01}
    learner = Learner.create(
        backbone={"name": "resnet20", "weights": "random", "size": 8},
        method={"name": "dlc", **quick, "base": {"name": "icarl", **quick, "memory": 12}}, fit={"device": "cpu"},
    )  # fmt: skip
    for i in range(2):
        learner.learn(stream(4, 2)[i])
    assert learner.name == "dlc(icarl)"
    assert learner.parameter_counts().keys() == {"backbone", "plugins", "unit", "head"}
    learner.save(tmp_path / "model")
    again = Learner.load(tmp_path / "model")
    x = draw(4, 3, 8, 8)
    assert torch.equal(again.logits(x), learner.logits(x))
    assert torch.equal(again.method.base.predict(x), learner.method.base.predict(x))
    again.learn(stream(6, 3)[2])
    assert again.method.plugins == ("plugin-0", "plugin-1", "plugin-2")
    scores = again.evaluate(source(6).test, tuple(range(6)))
    assert scores.keys() == {"", "base"}
