"""The contract on texts: what `test_methods.py` checks on a vision transformer, on encoders of transformers."""

from collections.abc import Callable
from typing import Any

import pytest
from encoders import ENCODERS, OFTEN, tiny_text_backbone
from streams import build

from lamella.backbones import Backbone
from lamella.common.options import options_of
from lamella.methods import METHODS
from lamella.methods.parts import PARTS
from lamella.testing import check_method, tiny_bert
from lamella.testing.checks import CHECKS
from lamella.testing.trial import Trial

CONVOLUTIONS = ("memo", "dlc")
"""Methods that cut a residual network."""
ON_TEXTS = [name for name in METHODS if name not in CONVOLUTIONS]
WITH_PARTS = [f"{name}+align" for name in ON_TEXTS if name != "der"]
WITH_PARTS += ["inflora+calibrate", "seq-finetune+calibrate", "streaming-lda+calibrate", "inflora+align+calibrate"]
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


@pytest.fixture(scope="module", params=[*ON_TEXTS, *(seldom(name, OFTEN_WITH_PARTS) for name in WITH_PARTS)])
def trial(request: pytest.FixtureRequest) -> Trial:
    """A method on a BERT, and the tasks that the checks let it learn."""
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
