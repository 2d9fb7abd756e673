"""The fixed budget of bytes: what a smaller model leaves is spent on exemplars."""

from typing import Any

import pytest
import torch

from lamella.data.images import TensorSet
from lamella.data.scenario import Scenario, Source, class_incremental
from lamella.experiments.budget import exemplars_within, finished_parameters, parameters_of, total_bytes
from lamella.learner.config.document import complete
from lamella.learner.learner import Learner

SIZES = [3, 2, 1]
D = 64  # features of resnet20
BACKBONE = 3 * 16 * 9 + 32 + 6 * (16 * 16 * 9 + 32) + (16 * 32 + 5 * 32 * 32) * 9 + 6 * 64
BACKBONE += (32 * 64 + 5 * 64 * 64) * 9 + 6 * 128
STAGE3 = (32 * 64 + 5 * 64 * 64) * 9 + 6 * 128


def stream() -> Scenario:
    labels = torch.arange(6).repeat(2)
    x = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return class_incremental(
        Source("noise", TensorSet(x, labels), TensorSet(x, labels, [f"t{i}" for i in range(12)]), tuple("abcdef")),
        sizes=SIZES,
    )


def settings(method: dict[str, Any]) -> dict[str, Any]:
    return complete({
        "backbone": {"name": "resnet20", "weights": "random", "size": 16}, "method": method, "fit": {"device": "cpu"},
    })  # fmt: skip


def heads(width: int) -> int:
    return sum(SIZES) * (width + 1)


WIDE = sum(classes * (t * D + 1) for t, classes in [(3, sum(SIZES))])
EXPECTED = {
    "replay": BACKBONE + heads(D),
    "der": 3 * BACKBONE + WIDE,
    "memo": BACKBONE + 2 * STAGE3 + WIDE,
    # Base, 3 plugins of rank 2 on two convolutions, 3 gates, and the classifier of 4 lanes.
    "dlc": BACKBONE + heads(D) + 3 * 2 * 2 * 9 * (D + D) + 3 * (D + 1) + heads(4 * D),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_parameters_are_known_before_training_and_equal_the_formula(name: str) -> None:
    method: dict[str, Any] = {"name": name, "epochs": 40, "memory": 12}
    if name == "dlc":
        method = {"name": name, "epochs": 30, "base": {"name": "wa", "memory": 12, "epochs": 50}}
    assert finished_parameters(settings(method), stream()) == EXPECTED[name]


def test_the_count_is_that_of_the_model_that_is_trained_later() -> None:
    config, scenario = settings({"name": "icarl", "epochs": 1, "memory": 0}), stream()
    learner = Learner(config)
    for i in range(len(scenario)):
        learner.learn(scenario[i])
    assert parameters_of(learner.method) == finished_parameters(config, scenario)
    assert finished_parameters(config, scenario) == BACKBONE + heads(D)


def test_a_smaller_model_gets_the_bytes_of_the_larger_one_as_exemplars() -> None:
    image = 3 * 32 * 32
    budget = total_bytes(EXPECTED["der"], 100, image)
    assert exemplars_within(budget, EXPECTED["der"], image) == 100
    more = exemplars_within(budget, EXPECTED["replay"], image)
    assert more == 100 + 4 * (EXPECTED["der"] - EXPECTED["replay"]) // image
    assert 0 <= budget - total_bytes(EXPECTED["replay"], more, image) < image


def test_a_model_beyond_the_budget_is_refused_in_one_line() -> None:
    assert exemplars_within(4000, 1000, 3072) == 0
    with pytest.raises(ValueError, match=r"a model of 1,001 parameters takes 4,004 bytes, .* raise the budget by 4,"):
        exemplars_within(4000, 1001, 3072)
