"""The contract: what holds for every method in METHODS, also when it carries alignment or, some, other parts.

Most of it is what `lamella.testing.check_method` checks of anyone's method.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from streams import build_shallow, images, learn_all, shallow_backbone, stream
from streams import often as often_of_all
from torch import Tensor

from lamella.data.transform import plain_view
from lamella.learner.store.state import learned_state
from lamella.methods import METHODS
from lamella.methods.parts import PARTS, Aligned
from lamella.testing.checks import CHECKS
from lamella.testing.trial import Trial, learn, logits, restored

CARRY_ALIGNMENT = [name for name in METHODS if not build_shallow(name).widens]
NAMES = [*METHODS, *(f"{name}+align" for name in CARRY_ALIGNMENT)]
NAMES += [f"{name}+mean_weights" for name in METHODS if build_shallow(name).one_weight and name != "joint"]
NAMES += ["inflora+mean_weights+calibrate", "inflora+mean_weights+calibrate+align"]
NAMES += ["seq-lora+merge", "color+merge", "sdlora+merge+align"]
NAMES += ["inflora+calibrate", "seq-finetune+calibrate", "streaming-lda+calibrate", "inflora+align+calibrate"]


def make(name: str, seed: int = 0) -> Any:
    base, *parts = name.split("+")
    method = build_shallow(base, seed)
    for part in parts:
        method = PARTS[part](method, seed=seed)
    return method


def inputs(method: Any, n: int = 8) -> Tensor:
    return images(6, 4, "test").batch(torch.arange(n), plain_view(method.backbone.transform))


OFTEN = {"inflora", "color", "replay"}
"""The methods whose form with one part is checked every time; the others, by `pytest -m slow`."""


def often(name: str) -> Any:
    base, *parts = name.split("+")
    seldom = parts in (["align"], ["mean_weights"]) and base not in OFTEN
    return pytest.param(name, marks=pytest.mark.slow) if seldom else name


@pytest.fixture(scope="module", params=[often(name) for name in NAMES])
def trial(request: pytest.FixtureRequest) -> tuple[str, Trial]:
    """A method, and the tasks that the checks let it learn."""
    return request.param, Trial(lambda seed: make(request.param, seed))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_method_keeps_the_contract(trial: tuple[str, Trial], check: Callable[[Trial], None]) -> None:
    check(trial[1])


def test_the_whole_backbone_changes_or_what_is_merged_or_nothing(trial: tuple[str, Trial]) -> None:
    method, before = trial[1].learned[:2]
    after = method.backbone.model.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(after[k], v)}
    merged = {f"{site.name}.weight" for site in method.sites} if method.merges else set()
    assert moved == (set(before) if method.changes_backbone else merged)


def test_what_is_stored_leaves_an_unchanged_backbone_out(trial: tuple[str, Trial]) -> None:
    method, before = trial[1].learned[:2]
    stored = {
        k.split("backbone.model.")[1].partition(".merged.")[0] for k in learned_state(method) if "backbone.model." in k
    }
    changed = {k for k in before if not torch.equal(method.backbone.model.state_dict()[k], before[k])}
    assert {k for k in stored if ".branches." not in k} == changed


def test_a_given_task_leaves_its_own_classes_in_their_order(trial: tuple[str, Trial]) -> None:
    name, method = trial[0], trial[1].learned.method
    task = trial[1].tasks[1].classes
    with torch.no_grad():
        free, given = method.predict(inputs(method)), method.predict(inputs(method), task)
    own = torch.tensor([c in task for c in method.classes])
    assert (method.routed and name in METHODS) or torch.equal(given[:, own], free[:, own])


def test_another_seed_differs_where_a_method_draws(trial: tuple[str, Trial]) -> None:
    name, examined = trial
    first = restored(examined, examined.learned.stored_first)
    other = learn(examined.new(seed=1), 0, examined.tasks[0], seed=1)
    draws = name.split("+")[0] not in ("nearest-mean", "streaming-lda") and name != "linear-probe+align"
    assert torch.equal(logits(first), logits(other)) is not draws


def test_a_task_holds_no_test_data() -> None:
    scenario = stream(4, 2)
    task_fields = {id(v) for i in range(2) for v in vars(scenario[i]).values()}
    assert not task_fields & {id(scenario.test(i)) for i in range(2)}


@pytest.mark.parametrize("name", often_of_all(METHODS))
def test_a_method_learns_the_first_task_better_than_chance(name: str) -> None:
    method = make(name) if name in ("nearest-mean", "streaming-lda") else build_shallow(name, epochs=15, lr=3e-3)
    scenario = stream(2, 1, per_class=16)
    learn_all(method, scenario)
    test = scenario.test(0)
    x = test.batch(torch.arange(len(test)), plain_view(method.backbone.transform))
    with torch.no_grad():
        right = method.predict(x).argmax(1) == torch.tensor([method.classes.index(c) for c in test.labels.tolist()])
    assert right.float().mean() > 0.8


def test_alignment_leaves_the_training_of_its_base_untouched() -> None:
    plain = learn_all(make("inflora"), stream())
    carried = learn_all(make("inflora+align"), stream())
    x = inputs(plain)
    with torch.no_grad():
        assert torch.equal(carried.readouts(x)["base"], plain.predict(x))
        assert torch.equal(carried.readouts(x)[""], carried.predict(x))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CARRY_ALIGNMENT])
def test_alignment_needs_features_of_one_width(name: str) -> None:
    with pytest.raises(ValueError, match=r"features of one width; those of .* widen with each task"):
        Aligned(build_shallow(name))


def test_the_shallow_backbone_is_a_vit_of_two_blocks() -> None:
    assert [site.name for site in shallow_backbone().sites("key+value")] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
