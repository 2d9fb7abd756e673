"""The contract on texts: what `test_methods.py` checks on a vision transformer, on encoders of transformers."""

from collections.abc import Callable
from typing import Any

import pytest
from encoders import ENCODERS, OFTEN, tiny_text_backbone
from streams import build
from streams import often as often_of_all

from lamella.backbones import Backbone
from lamella.backbones.hashed_words import HashedWords
from lamella.common.options import options_of
from lamella.data.transform import Augmentation
from lamella.learner.store.state import learned_state, restore_state
from lamella.methods import METHODS
from lamella.methods.parts import PARTS
from lamella.testing import check_method, tiny_bert
from lamella.testing.checks import CHECKS
from lamella.testing.tiny import tiny_tasks
from lamella.testing.trial import Trial, difference, learn
from lamella.training.fit import Fit

CONVOLUTIONS = ("memo", "dlc")
"""Methods that cut a residual network."""
ON_TEXTS = [name for name in METHODS if name not in CONVOLUTIONS]
WITH_PARTS = [f"{name}+align" for name in ON_TEXTS if name != "der"]
WITH_PARTS += [
    "inflora+mean_weights+align",
    "inflora+calibrate",
    "seq-finetune+calibrate",
    "streaming-lda+calibrate",
    "inflora+align+calibrate",
]
OFTEN_WITH_PARTS = ("inflora+align", "streaming-lda+calibrate")
SHORT = {"epochs": 1, "projections": 64}
IN_EVERY_ARCHITECTURE = ("inflora", "seq-lora", "streaming-lda")


def make(name: str, backbone: Backbone, seed: int = 0) -> Any:
    base, *parts = name.split("+")
    known = options_of(METHODS[base])
    method = build(base, seed, backbone, **{key: value for key, value in SHORT.items() if key in known})
    for part in parts:
        method = PARTS[part](method, seed=seed)
    return method


def seldom(name: str, often: Any) -> Any:
    return name if name in often else pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(
    scope="module", params=[*often_of_all(ON_TEXTS), *(seldom(name, OFTEN_WITH_PARTS) for name in WITH_PARTS)]
)
def trial(request: pytest.FixtureRequest) -> Trial:
    """A method on a BERT, and the tasks that the checks let it learn.

    On images `test_methods.py` checks every method; here the usual ones stand for what reads features, trains adapters,
    keeps rows, widens and routes.
    """
    return Trial(lambda seed: make(request.param, tiny_bert(), seed))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_method_keeps_the_contract_on_texts(trial: Trial, check: Callable[[Trial], None]) -> None:
    check(trial)


@pytest.mark.parametrize("method", IN_EVERY_ARCHITECTURE)
@pytest.mark.parametrize("name", [seldom(name, OFTEN) for name in ENCODERS if name != "bert"])
def test_a_method_keeps_the_contract_on_an_encoder_of_any_architecture(name: str, method: str) -> None:
    checked = check_method(
        lambda backbone, seed: make(method, backbone, seed), backbone=lambda: tiny_text_backbone(name)
    )
    assert len(checked) == len(CHECKS)


# what cannot work is refused when it is built ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("memo", "the network, Encoder, has no stages of convolutions to cut between; use a residual network"),
        ("dlc", "the network, Encoder, has no stages of convolutions to cut between; use a residual network"),
    ],
)
def test_methods_that_cut_a_residual_network_are_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        make(name, tiny_bert())


@pytest.mark.parametrize("name", ["duallora", "inflora+calibrate", "streaming-lda+calibrate"])
def test_methods_that_read_a_class_token_are_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="this backbone has no class token, by which tasks are recognised"):
        make(name, tiny_text_backbone("gpt2"))


def test_an_augmentation_of_texts_is_refused_before_anything_is_learned() -> None:
    method = make("inflora", tiny_bert())
    fit = Fit(method, method.backbone.transform, augmentation=Augmentation(), device="cpu")
    with pytest.raises(ValueError, match=r"^\[augment\] is for images, and this backbone takes texts; leave it out$"):
        method.learn(tiny_tasks([2], noun="text")[0], fit)
    assert not len(method.heads)
    with pytest.raises(ValueError, match=r"^\[augment\] is for images, and this backbone takes texts; leave it out$"):
        HashedWords().view(augmentation=Augmentation())


# layers that read the same inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "deberta-v3", "llama"])
def test_one_second_moment_for_keys_and_values_gives_the_state_that_two_give(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tiny_tasks([2, 2], noun="text")
    shared = make("inflora", tiny_text_backbone(name))
    assert len(set(shared.reads_as.values())) == len(shared.reads_as) // 2
    monkeypatch.setattr(Backbone, "first_readers", lambda self, sites: {site.name: site.name for site in sites})
    apart = make("inflora", tiny_text_backbone(name))
    for number, task in enumerate(tasks):
        learn(shared, number, task)
        learn(apart, number, task)
    assert difference(shared.state_dict(), apart.state_dict()) == ""
    monkeypatch.undo()
    again = make("inflora", tiny_text_backbone(name))
    restore_state(again, learned_state(apart))
    assert difference(again.state_dict(), apart.state_dict()) == "", "what was stored before is read"
