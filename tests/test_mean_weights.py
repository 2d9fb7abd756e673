"""The running mean of weights: what predicts is the mean, what trains is untouched."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from streams import build_shallow, fit_for, images, learn_all, stream
from torch import Tensor

from lamella import Learner
from lamella.adapters.acting import acting_branches, added
from lamella.data.transform import Augmentation, plain_view
from lamella.learner.costs import costs_of_base, parameter_counts
from lamella.learner.export.network import fixed, predicting
from lamella.learner.records import TaskRecord
from lamella.learner.store.state import learned_state, restore_state, stored_bytes
from lamella.methods import METHODS
from lamella.methods.parts import Aligned, MeanWeights
from lamella.methods.parts.mean_weights import newest_share
from lamella.training.fit import Fit

FITTING: dict[str, Callable[[], Any]] = {
    "inflora": lambda: build_shallow("inflora"),
    "olora": lambda: build_shallow("olora"),
    "seq-lora": lambda: build_shallow("seq-lora"),
    "fresh seq-lora": lambda: build_shallow("seq-lora", fresh=True),
    **{name: partial(build_shallow, name) for name in ("lora-sub", "e2lora")},
    "sdlora": lambda: build_shallow("sdlora"),
    "duallora without gates": lambda: build_shallow("duallora", gate="off"),
    "query and value": lambda: build_shallow("inflora", sites=("query", "value")),
    "duallora without R": lambda: build_shallow("duallora", residual="none"),
}
"""Methods that fold, and methods that keep branches."""
FOLD_OR_KEEP = (
    "inflora",
    "olora",
    "seq-lora",
    "joint",
    "sdlora",
    "splitlora",
    "lora-sub",
    "ewc-lora",
    "e2lora",
    "loda",
)


def inputs(method: Any) -> Tensor:
    return images(6, 4, "test").batch(torch.arange(8), plain_view(method.backbone.transform))


def first_two(scenario: Any) -> Any:
    """The first two tasks, as `learn_all` takes them."""
    return [scenario[0], scenario[1]]


class Recorded(Fit):
    """The real fit, which keeps what passes gave."""

    def __init__(self, method: Any) -> None:
        super().__init__(method, method.backbone.transform, augmentation=Augmentation((0.8, 1.0)), device="cpu")
        self.seen: list[tuple[str, Tensor]] = []

    def features(self, data: Any, extract: Any, *, keep: bool = False, name: str = "features") -> Tensor:
        self.seen.append((name, super().features(data, extract, keep=keep, name=name)))
        return self.seen[-1][1]


def acting_weights(method: Any) -> dict[str, np.ndarray]:
    """By layer, the weight that it acts as in predictions, in float64."""
    layers = {site.name: site.layer for site in method.sites}
    acting = acting_branches(layers, lambda: method.predict(inputs(method)))
    return {n: layer.weight.detach().double().numpy() + added(layer.weight, acting[n]).numpy() for n, layer in
            layers.items()}  # fmt: skip


def histories(name: str, power: float = 0.0) -> tuple[Any, Any, list[dict[str, np.ndarray]]]:
    """The same method alone and under the mean, after three tasks, and the weights of the first after each task."""
    plain, mean, scenario = FITTING[name](), MeanWeights(FITTING[name](), power=power), stream()
    fit, weights = fit_for(plain), []
    for task in (scenario[i] for i in range(3)):
        fit.begin(str(task.id))
        plain.learn(task, fit)
        weights.append(acting_weights(plain.eval()))
    return plain, learn_all(mean, scenario).eval(), weights


@pytest.mark.parametrize("name", FITTING)
def test_the_weights_that_predict_are_the_mean_of_those_after_each_task(name: str) -> None:
    _, mean, weights = histories(name)
    found = acting_weights(mean)
    for layer in found:
        wanted = sum(of_task[layer] for of_task in weights) / 3
        assert np.abs(found[layer] - wanted).max() < 1e-6
        assert np.abs(weights[-1][layer] - wanted).max() > 1e-4, "or else this says nothing"


@pytest.mark.parametrize(("power", "shares"), [(0.0, (1, 1, 1)), (1.0, (1, 2, 3)), (1e9, (0, 0, 1))])
def test_a_power_weighs_newer_tasks_more(power: float, shares: tuple[int, ...]) -> None:
    _, mean, weights = histories("olora", power)
    for layer, found in acting_weights(mean).items():
        wanted = sum(share * of_task[layer] for share, of_task in zip(shares, weights, strict=True)) / sum(shares)
        assert np.abs(found - wanted).max() < 1e-6


def test_shares_of_the_tasks_grow_as_a_power_of_their_number() -> None:
    """p = 2 by hand: 1, then 3 / 4, 3 / 5, 3 / 6; W_i in M_4 has i (i + 1) / 2 of 20 parts."""
    assert [newest_share(t, 2.0) for t in (1, 2, 3, 4)] == [1.0, 0.75, 0.6, 0.5]
    weights = [0.0, 0.0, 0.0, 0.0]
    for t in range(4):
        weights = [w * (1 - newest_share(t + 1, 2.0)) for w in weights]
        weights[t] = newest_share(t + 1, 2.0)
    assert np.allclose(weights, [0.05, 0.15, 0.3, 0.5])


@pytest.mark.parametrize("name", FITTING)
def test_training_is_the_same_to_the_last_bit(name: str) -> None:
    plain, mean, _ = histories(name)
    with mean.base_alone() as base, torch.no_grad():
        alone, below = plain.state_dict(), base.state_dict()
        assert alone.keys() == below.keys()
        assert [key for key in alone if not torch.equal(alone[key], below[key])] == []
        assert torch.equal(base.predict(inputs(plain)), plain.predict(inputs(plain)))


@pytest.mark.parametrize("name", FITTING)
def test_predictions_are_those_of_a_network_with_the_mean(name: str) -> None:
    plain, mean, weights = histories(name)
    x = inputs(mean)
    for name, layer in {site.name: site.layer for site in plain.sites}.items():
        branches = weights[-1][name] - layer.weight.detach().double().numpy()
        layer.weight.copy_(torch.from_numpy(sum(of_task[name] for of_task in weights) / 3 - branches))
    with torch.no_grad():
        assert torch.allclose(mean.predict(x), plain.predict(x), atol=1e-5)
        assert torch.allclose(mean.features(x), plain.features(x), atol=1e-5)


def test_after_one_task_nothing_has_changed() -> None:
    plain, mean, scenario = build_shallow("inflora"), MeanWeights(build_shallow("inflora")), stream(2, 1)
    learn_all(plain, scenario)
    learn_all(mean, scenario)
    with torch.no_grad():
        assert torch.equal(plain.predict(inputs(plain)), mean.predict(inputs(plain)))


def test_the_newest_weights_and_the_mean_are_two_readouts() -> None:
    plain, mean, _ = histories("inflora")
    with torch.no_grad():
        readouts = mean.readouts(inputs(mean))
        assert list(readouts) == ["", "base"]
        assert torch.equal(readouts["base"], plain.predict(inputs(plain)))
        assert torch.equal(readouts[""], mean.predict(inputs(mean)))
        assert not torch.allclose(readouts[""], readouts["base"], atol=1e-4)


def test_alignment_sees_the_mean_before_and_after_a_task_and_passes_as_often() -> None:
    scenario, passes = stream(), {}
    for name, method in (
        ("with", Aligned(MeanWeights(build_shallow("inflora")))),
        ("without", Aligned(build_shallow("inflora"))),
    ):
        passes[name] = Recorded(method)
        learn_all(method, scenario, passes[name])
    assert [name for name, _ in passes["with"].seen] == [name for name, _ in passes["without"].seen]
    before, after = passes["with"].seen[-2:]
    mean = learn_all(MeanWeights(build_shallow("inflora")), first_two(scenario))
    fit = fit_for(mean)
    fit.begin("again")
    assert torch.equal(fit.features(scenario[2].train, mean.eval().features), before[1])
    fit.begin("2")
    mean.learn(scenario[2], fit)
    assert torch.equal(fit.features(scenario[2].train, mean.eval().features), after[1])


def test_what_is_stored_has_both_weights_and_learns_on_with_the_same_bits() -> None:
    scenario = stream()
    whole = learn_all(MeanWeights(build_shallow("seq-lora")), first_two(scenario))
    again = MeanWeights(build_shallow("seq-lora"))
    restore_state(again, {key: tensor.clone() for key, tensor in learned_state(whole).items()})
    assert int(again.tasks) == 2
    for method in (whole, again):
        fit = fit_for(method)
        fit.begin("2")
        method.learn(scenario[2], fit)
    assert [k for k, v in whole.state_dict().items() if not torch.equal(v, again.state_dict()[k])] == []


def test_an_export_has_the_mean_and_that_of_the_base_what_was_trained() -> None:
    plain, mean, _ = histories("sdlora")
    x = inputs(mean)
    with torch.no_grad():
        assert torch.allclose(fixed(mean)(x), mean.predict(x), atol=1e-4)
        with predicting(mean, "base") as base:
            assert torch.allclose(fixed(base)(x), plain.predict(x), atol=1e-4)
        assert not torch.allclose(mean.predict(x), plain.predict(x), atol=1e-3)


def test_the_base_costs_what_it_would_cost_alone_and_the_mean_one_copy_of_the_adapted_rows() -> None:
    plain, mean, _ = histories("seq-lora")
    record = TaskRecord("a", (0, 1), 16, {"total": 1.0}, 1, {"train": 1})
    base = costs_of_base(mean, [record], 1)
    assert base["parameters"] == parameter_counts(plain) == parameter_counts(mean)
    assert base["stored_bytes"] == stored_bytes(plain)
    rows = sum(site.layer.weight[site.rows].numel() for site in plain.sites)
    kept = sum(t.numel() for name, t in mean.trained.named_buffers())
    assert kept == rows


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FOLD_OR_KEEP])
def test_what_has_no_weights_to_average_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match="mean_weights") as caught:
        MeanWeights(build_shallow(name))
    assert "\n" not in str(caught.value)


def test_other_parts_are_carried_on_top_and_a_power_is_not_negative() -> None:
    with pytest.raises(ValueError, match=r"is taken of a method alone.*inflora\+mean_weights\+align"):
        MeanWeights(Aligned(build_shallow("inflora")))
    with pytest.raises(ValueError, match=r"power -1 must be 0 \(all tasks weigh alike\) or more"):
        MeanWeights(build_shallow("inflora"), power=-1)


def test_a_fresh_adapter_a_task_is_olora_without_its_penalty() -> None:
    fresh = learn_all(build_shallow("seq-lora", fresh=True), stream())
    olora = learn_all(build_shallow("olora", orthogonality=0.0), stream())
    with torch.no_grad():
        assert torch.equal(fresh.predict(inputs(fresh)), olora.predict(inputs(olora)))
    assert not any(site.layer.branches for site in fresh.sites)


def test_the_command_line_carries_it_and_exports_the_mean(tmp_path: Path, lamella: Run) -> None:
    short = ["method.epochs=1", "method.rank=2", "scenario.tasks=2", "fit.device=cpu", "scenario.per_class=10"]
    code, _, err = lamella("run", "digits", "method.mean_weights=true", *short, "--out", tmp_path / "run")
    assert code == 0, err
    model = Learner.load(tmp_path / "run" / "model")
    assert model.name == "inflora+mean_weights+align"
    assert {f.name for f in (tmp_path / "run").glob("results*")} == {
        "results.json", "results-inflora.json", "results-inflora+mean_weights.json"
    }  # fmt: skip
    x = model.backbone.example(3, torch.Generator().manual_seed(0))
    before = model.logits(x)
    for readout in ("", "base", "base.base"):
        code, _, err = lamella("export", tmp_path / "run" / "model", "--format", "adapters", "--readout", readout,
                               "--out", tmp_path / f"adapters{readout}")  # fmt: skip
        assert code == 0, err
    assert torch.equal(model.logits(x), before)
