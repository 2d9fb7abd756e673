"""The contract: what holds for every method in METHODS, also when it carries alignment or, some, calibration."""

import copy
from typing import Any

import pytest
import torch
from streams import build, fit_for, images, learn_all, stream, tiny_backbone
from torch import Tensor

from lamella.data.transform import plain_view
from lamella.learner.store.state import learned_state, restore_state
from lamella.methods import METHODS
from lamella.methods.parts import PARTS, Aligned

CARRY_ALIGNMENT = [name for name in METHODS if not build(name).widens]
NAMES = [*METHODS, *(f"{name}+align" for name in CARRY_ALIGNMENT)]
NAMES += ["inflora+calibrate", "seq-finetune+calibrate", "streaming-lda+calibrate", "inflora+align+calibrate"]


def make(name: str, seed: int = 0) -> Any:
    base, *parts = name.split("+")
    method = build(base, seed)
    for part in parts:
        method = PARTS[part](method, seed=seed)
    return method


def inputs(method: Any, n: int = 8) -> Tensor:
    return images(6, 4, "test").batch(torch.arange(n), plain_view(method.backbone.transform))


def logits(method: Any) -> Tensor:
    with torch.no_grad():
        return method.eval().predict(inputs(method))


@pytest.fixture(scope="module", params=NAMES)
def learned(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, Tensor], list[int]]:
    """A method after three tasks, the backbone's tensors before, and the number of logits after each task."""
    method = make(request.param)
    before = {k: v.clone() for k, v in method.backbone.model.state_dict().items() if ".branches." not in k}
    scenario, fit, sizes = stream(), fit_for(method), []
    for i in range(len(scenario)):
        fit.begin(str(i))
        method.learn(scenario[i], fit)
        sizes.append(logits(method).shape[1])
    return request.param, method, before, sizes


def test_logits_grow_with_the_classes_and_are_finite(learned: Any) -> None:
    _, method, _, sizes = learned
    assert sizes == [2, 4, 6]
    assert method.classes == stream().class_order
    assert torch.isfinite(logits(method)).all()


def test_nothing_is_trainable_after_learning(learned: Any) -> None:
    _, method, _, _ = learned
    assert not [name for name, p in method.named_parameters() if p.requires_grad or p.grad is not None]


def test_the_backbone_changes_only_where_the_method_says_so(learned: Any) -> None:
    _, method, before, _ = learned
    after = method.backbone.model.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(after[k], v)}
    merged = {f"{site.name}.weight" for site in method.sites} if method.merges else set()
    assert moved == (set(before) if method.changes_backbone else merged)


def test_a_prediction_does_not_depend_on_its_batch(learned: Any) -> None:
    _, method, _, _ = learned
    x = inputs(method)
    with torch.no_grad():
        together = method.predict(x)
        alone = torch.cat([method.predict(image[None]) for image in x])
        backwards = method.predict(x.flip(0)).flip(0)
    scale = together.abs().max()
    torch.testing.assert_close(alone / scale, together / scale, atol=2e-5, rtol=0)
    torch.testing.assert_close(backwards / scale, together / scale, atol=2e-5, rtol=0)


def test_every_readout_is_the_prediction_of_what_it_is_named_after(learned: Any) -> None:
    _, method, _, _ = learned
    with torch.no_grad():
        readouts = method.readouts(inputs(method))
        assert "" in readouts
        for name, logits in readouts.items():
            alone = method
            for _ in name.split(".") if name else ():
                alone = alone.base
            expected = alone.predict(inputs(method))
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5, msg=f"'{name}' would be wrong")


def test_a_given_task_rules_out_the_others_without_reordering_its_own(learned: Any) -> None:
    name, method, _, _ = learned
    task = stream()[1].classes
    x = inputs(method)
    with torch.no_grad():
        free, given = method.predict(x), method.predict(x, task)
    own = torch.tensor([c in task for c in method.classes])
    assert torch.isfinite(given).all()
    assert own[given.argmax(1)].all()
    assert (method.routed and name in METHODS) or torch.equal(given[:, own], free[:, own])


def test_saving_and_loading_gives_the_same_predictions(learned: Any) -> None:
    name, method, _, _ = learned
    state = {k: v.clone() for k, v in learned_state(method).items()}
    again = make(name)
    restore_state(again, state)
    assert torch.equal(logits(again), logits(method))
    assert again.classes == method.classes


def test_what_is_stored_leaves_an_unchanged_backbone_out(learned: Any) -> None:
    _, method, before, _ = learned
    stored = {k.split("backbone.model.")[1] for k in learned_state(method) if "backbone.model." in k}
    changed = {k for k in before if not torch.equal(method.backbone.model.state_dict()[k], before[k])}
    assert {k for k in stored if ".branches." not in k} == changed


def test_every_stored_tensor_is_contiguous(learned: Any) -> None:
    """Or else it would round differently after coming back from a file."""
    _, method, _, _ = learned
    assert [name for name, t in method.state_dict().items() if not t.is_contiguous()] == []


def test_a_restored_method_learns_on_as_the_original_does(learned: Any) -> None:
    name, method, _, _ = learned
    scenario = stream(8, 4)
    state = {k: v.clone() for k, v in learned_state(method).items()}
    original, again = copy.deepcopy(method), make(name)
    restore_state(again, state)
    for m in (original, again):
        fit = fit_for(m)
        fit.begin("3")
        m.learn(scenario[3], fit)
    assert logits(original).shape[1] == 8
    assert torch.equal(logits(original), logits(again))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_result_and_another_one_differs(name: str) -> None:
    first, second = (learn_all(make(name), stream(4, 2)) for _ in range(2))
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(logits(first), logits(second))
    again = make(name, seed=1)
    other = learn_all(again, stream(4, 2), fit_for(again, seed=1))
    draws = name.split("+")[0] not in ("nearest-mean", "streaming-lda") and name != "linear-probe+align"
    assert torch.equal(logits(first), logits(other)) is not draws


@pytest.mark.parametrize("name", NAMES)
def test_tasks_of_unequal_size_and_classes_that_come_back(name: str) -> None:
    method = make(name)
    scenario = stream(6, None, sizes=[3, 1, 2])
    fit = fit_for(method)
    for number, i in enumerate([0, 1, 0, 2]):
        fit.begin(str(number))
        method.learn(scenario[i], fit)
    assert method.classes == scenario.class_order
    assert torch.isfinite(logits(method)).all()


@pytest.mark.parametrize("name", NAMES)
def test_learning_never_asks_for_test_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = stream(4, 2)
    monkeypatch.setattr(type(scenario), "test", lambda *_: pytest.fail("test data was asked for"))
    task_fields = {id(v) for i in range(2) for v in vars(scenario[i]).values()}
    assert not task_fields & {id(t) for t in scenario._tests}
    method = learn_all(make(name), scenario)
    assert len(method.classes) == 4


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_learns_the_first_task_better_than_chance(name: str) -> None:
    method = make(name) if name in ("nearest-mean", "streaming-lda") else build(name, epochs=15, lr=3e-3)
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
        Aligned(build(name))


def test_the_tiny_backbone_is_a_real_vit() -> None:
    assert len(tiny_backbone().sites("key+value")) == 6
