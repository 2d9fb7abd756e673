"""The part that merges what tasks have added: what predicts is W_0 plus the merge, and what trains is the method."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from streams import build_shallow, fit_for, learn_all, stream
from test_mean_weights import acting_weights, first_two, inputs

from lamella import Learner
from lamella.adapters.adapter import using
from lamella.adapters.merging import Merging, merged
from lamella.adapters.pairs import low_rank
from lamella.learner.export.network import fixed, predicting
from lamella.learner.store.state import learned_state, restore_state
from lamella.methods import METHODS
from lamella.methods.parts import Aligned, MeanWeights, Merged

IN_A_ROW: dict[str, Callable[[], Any]] = {
    "fresh seq-lora": lambda: build_shallow("seq-lora", fresh=True),
    "query and value": lambda: build_shallow("olora", sites=("query", "value")),
    **{name: partial(build_shallow, name) for name in ("seq-lora", "olora", "inflora", "sdlora")},
}
"""Methods that fold, and methods that keep branches."""
FITTING = ("inflora", "olora", "seq-lora", "joint", "sdlora", "splitlora", "lora-sub", "ewc-lora", "e2lora", "loda",
           "color")  # fmt: skip


def in_a_row(name: str) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """The weights of a method alone before the first of three tasks, and what each has added."""
    plain, scenario = IN_A_ROW[name](), stream()
    fit, first = fit_for(plain), before_learning(plain)
    weights = [first]
    for task in (scenario[i] for i in range(3)):
        fit.begin(str(task.id))
        plain.learn(task, fit)
        weights.append(acting_weights(plain.eval()))
    added = [{n: after[n] - before[n] for n in after} for before, after in pairwise(weights)]
    return first, added


def before_learning(method: Any) -> dict[str, np.ndarray]:
    """By layer, the weight of a method that has learned nothing: its branches are zero, where it has any."""
    return {site.name: site.layer.weight.detach().double().numpy() for site in method.sites}


@pytest.mark.parametrize(
    ("name", "rule"), [*((name, "tsv") for name in IN_A_ROW), *(("olora", r) for r in ("mean", "opcm", "elect"))]
)
def test_the_weights_that_predict_are_the_first_ones_and_the_merge_of_what_tasks_added(name: str, rule: str) -> None:
    first, added = in_a_row(name)
    part = learn_all(Merged(IN_A_ROW[name](), merging=Merging(rule)), stream()).eval()
    rows = part.trained.rows
    adapters = [
        {n: low_rank(torch.from_numpy(D[rows[n]]), torch.from_numpy(first[n][rows[n]])) for n, D in own.items()}
        for own in added
    ]
    wanted = {n: pair.delta().numpy() for n, pair in merged(adapters, Merging(rule)).items()}
    found = acting_weights(part)
    for layer, weight in found.items():
        change = weight - first[layer]
        assert np.abs(change[rows[layer]] - wanted[layer]).max() < 2e-6
        assert np.abs(wanted[layer]).max() > 1e-4, "or else this says nothing"


@pytest.mark.parametrize("name", IN_A_ROW)
def test_training_in_a_row_is_the_same_to_the_last_bit(name: str) -> None:
    plain, part = learn_all(IN_A_ROW[name](), stream()), learn_all(Merged(IN_A_ROW[name]()), stream())
    plain.eval(), part.eval()
    with part.base_alone() as base, torch.no_grad():
        alone, below = plain.state_dict(), base.state_dict()
        assert [key for key in alone if not torch.equal(alone[key], below[key])] == []
        assert torch.equal(base.predict(inputs(plain)), plain.predict(inputs(plain)))
    with torch.no_grad():
        assert not torch.allclose(part.predict(inputs(part)), plain.predict(inputs(plain)), atol=1e-4)


def test_the_sum_of_what_tasks_added_in_a_row_is_the_method_alone() -> None:
    plain = learn_all(build_shallow("olora"), stream()).eval()
    part = learn_all(Merged(build_shallow("olora"), merging=Merging("sum")), stream()).eval()
    with torch.no_grad():
        assert torch.allclose(plain.predict(inputs(plain)), part.predict(inputs(part)), atol=1e-4)


@pytest.mark.parametrize("name", ["fresh seq-lora", "seq-lora", "olora"])
def test_from_the_pretrained_start_every_task_adds_to_the_same_weights(name: str) -> None:
    part = Merged(IN_A_ROW[name](), start="pretrained")
    first = before_learning(IN_A_ROW[name]())
    fit, scenario, begun = fit_for(part), stream(), []
    learn = part.base.learn

    def spied(task: Any, own: Any) -> None:
        begun.append({n: w.numpy() for n, w in part.acting_weights().items()})
        learn(task, own)

    part.base.learn = spied
    for task in (scenario[i] for i in range(3)):
        fit.begin(str(task.id))
        part.learn(task, fit)
    rows = part.trained.rows
    for weights in begun:
        assert all(np.abs(weights[n] - first[n][rows[n]]).max() < 1e-6 for n in weights)


def test_experts_become_one_and_nothing_is_chosen() -> None:
    plain = learn_all(build_shallow("color"), stream()).eval()
    part = learn_all(Merged(build_shallow("color"), merging=Merging("mean")), stream()).eval()
    x = inputs(part)
    with torch.no_grad():
        with using(plain.sites, {f"task{t}": 1 / 3 for t in range(3)}):
            wanted = plain.heads(plain.backbone(x))
        assert torch.allclose(part.predict(x), wanted, atol=1e-4)
        assert torch.equal(part.readouts(x)["base"], plain.predict(x))
        assert torch.equal(part.readouts(x)[""], part.predict(x))
        assert torch.allclose(fixed(part)(x), part.predict(x), atol=1e-4)
        assert torch.allclose(part.predict(x), part.classify(part.features(x)))


@pytest.mark.parametrize(("name", "rule"), [("seq-lora", "tsv"), ("color", "tsv"), ("olora", "regmean")])
def test_what_is_stored_learns_on_with_the_same_bits(name: str, rule: str) -> None:
    scenario, merging = stream(), Merging(rule)
    whole = learn_all(Merged(build_shallow(name), merging=merging), first_two(scenario))
    again = Merged(build_shallow(name), merging=merging)
    restore_state(again, {key: tensor.clone() for key, tensor in learned_state(whole).items()})
    for method in (whole, again):
        fit = fit_for(method)
        fit.begin("2")
        method.learn(scenario[2], fit)
    assert [k for k, v in whole.state_dict().items() if not torch.equal(v, again.state_dict()[k])] == []


def test_an_export_has_the_merge_and_that_of_the_base_what_was_trained() -> None:
    plain, part = (
        learn_all(build_shallow("olora"), stream()).eval(),
        learn_all(Merged(build_shallow("olora")), stream()).eval(),
    )
    x = inputs(part)
    with torch.no_grad():
        assert torch.allclose(fixed(part)(x), part.predict(x), atol=1e-4)
        with predicting(part, "base") as base:
            assert torch.allclose(fixed(base)(x), plain.predict(x), atol=1e-4)


def test_it_keeps_two_copies_of_the_adapted_rows_and_thin_factors_for_each_task() -> None:
    part = learn_all(Merged(build_shallow("olora", rank=2)), stream())
    rows = sum(site.layer.weight[site.rows].numel() for site in part.sites)
    assert sum(t.numel() for t in part.trained.buffers()) == sum(t.numel() for t in part.begun.buffers()) == rows
    widths = sum(sum(site.layer.weight[site.rows].shape) for site in part.sites)
    thin = sum(t.numel() for name, t in part.updates.named_buffers() if not name.endswith("ranks"))
    assert thin <= 3 * 2 * widths


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FITTING])
def test_what_adds_nothing_that_could_be_merged_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"merge needs adapters|merge is for a method alone") as caught:
        Merged(build_shallow(name))
    assert "\n" not in str(caught.value)


def test_rules_that_need_more_than_the_updates_and_other_starts_are_refused() -> None:
    base = build_shallow("olora")
    with pytest.raises(ValueError, match="rule 'weighted' needs a weight for each task"):
        Merged(base, merging=Merging("weighted"))
    with pytest.raises(ValueError, match="start 'first' is unknown; use one of newest, pretrained"):
        Merged(base, start="first")
    with pytest.raises(ValueError, match=r"those of DoRA are not; use method\.form = 'lora'"):
        Merged(build_shallow("seq-lora", fresh=True, form="dora"))
    with pytest.raises(ValueError, match=r"is for a method alone.*seq-lora\+merge\+align"):
        Merged(Aligned(base))
    for one, other in ((Merged, MeanWeights), (MeanWeights, Merged)):
        with pytest.raises(ValueError, match="merge and mean_weights both choose the weights"):
            other(one(build_shallow("olora")))


def test_the_command_line_carries_it_below_alignment(tmp_path: Path, lamella: Run) -> None:
    short = [
        "method.name=olora+align",
        "method.epochs=1",
        "method.rank=2",
        "scenario.tasks=2",
        "fit.device=cpu",
        "scenario.per_class=10",
    ]
    rule = ["method.merge.rule=iso-c", "method.merge.start=pretrained"]
    code, _, err = lamella("run", "digits", *short, *rule, "--out", tmp_path / "run")
    assert code == 0, err
    assert Learner.load(tmp_path / "run" / "model").name == "olora+merge+align"
    assert {f.name for f in (tmp_path / "run").glob("results*")} == {
        "results.json", "results-olora.json", "results-olora+merge.json"
    }  # fmt: skip
    code, _, err = lamella("run", "digits", "method.merge.rule=average", "--out", tmp_path / "other")
    assert code == 2
    assert "rule 'average' is unknown" in err
