"""A router in the place of DualLoRA's signatures: it reads frozen features, in one more pass."""

import copy
import re
from typing import Any

import pytest
import torch
from streams import configured, tiny_backbone
from test_duallora import QUICK, STREAM, pixels, taught
from torch import Tensor

from lamella.adapters.adapter import using
from lamella.learner.store.state import learned_state, restore_state
from lamella.memory.calibration import Calibration
from lamella.methods.duallora import DualLoRA
from lamella.methods.shared.routing import ON_FEATURES

ON_CLASS_TOKENS: dict[str, Any] = {"tokens": "class", "sites": ["out", "mlp"], "router_projections": 40}
OWNERS = [t for t in range(3) for _ in range(3)]


@pytest.fixture(scope="module", params=ON_FEATURES)
def method(request: pytest.FixtureRequest) -> DualLoRA:
    return taught(router=request.param, **ON_CLASS_TOKENS)[0].eval()


def every(method: DualLoRA) -> tuple[Tensor, Tensor]:
    x = torch.cat([pixels(method, task) for task in STREAM[:3]])
    return x, torch.arange(3).repeat_interleave(len(x) // 3)


def test_the_features_that_it_reads_are_those_of_the_network_before_the_first_task(method: DualLoRA) -> None:
    x, _ = every(method)
    router, fresh = method.router, tiny_backbone()
    assert router is not None
    with torch.no_grad():
        torch.testing.assert_close(router.experts.features(x, ()), fresh(x), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(method.features(x), fresh(x), atol=1e-3)


def test_tasks_are_chosen_by_it_in_two_passes(method: DualLoRA) -> None:
    x, tasks = every(method)
    begun: list[int] = []
    hook = method.backbone.model.register_forward_pre_hook(lambda *_: begun.append(1))
    with torch.no_grad():
        assert float((method.choose_task(x) == tasks).float().mean()) > 0.9
    hook.remove()
    assert len(begun) == 1 + method.routing.passes(3) == 2


def test_its_probabilities_calibrate_the_logits(method: DualLoRA) -> None:
    x, _ = every(method)
    assert method.router is not None
    with torch.no_grad():
        plain = method.heads(method.features(x))
        with using(method.sites, ()):
            scores = method.router.keys.scores(method.backbone(x))
        tau = 0.1 if method.routing.router == "least-squares" else 1.0
        expected = Calibration(1.0, tau, "add")(plain, scores.float(), OWNERS)
        torch.testing.assert_close(method.predict(x), expected, atol=1e-4, rtol=1e-4)


def test_training_is_the_same_without_it(method: DualLoRA) -> None:
    plain = taught(**ON_CLASS_TOKENS)[0].state_dict()
    routed = method.state_dict()
    assert all(torch.equal(value, routed[key]) for key, value in plain.items())
    assert all(key.startswith("router.") for key in routed.keys() - plain.keys())


def test_a_loaded_or_copied_model_predicts_alike(method: DualLoRA) -> None:
    again = configured(DualLoRA, tiny_backbone(), **(QUICK | ON_CLASS_TOKENS | {"router": method.routing.router}))
    restore_state(again, learned_state(method))
    x, _ = every(method)
    with torch.no_grad():
        wanted = method.predict(x)
        assert torch.equal(again.eval().predict(x), wanted)
        assert torch.equal(copy.deepcopy(method).predict(x), wanted)


def test_without_o_all_tokens_may_be_adapted() -> None:
    method = taught(2, router="gaussian", orthogonal=False)[0].eval()
    assert (method.choose_task(pixels(method, STREAM[1])) == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router": "gaussian"}, "DualLoRA merges orthogonal adapters into its weights; use tokens = 'class'"),
        ({"router": "arrow"}, "router 'arrow' does not fit DualLoRA: its adapters of all tasks act together"),
        ({"router": "entropy"}, "router 'entropy' does not fit DualLoRA"),
        ({"router": "none"}, "router 'none' is unknown; use one of signature, nearest, gaussian, least-squares"),
        ({"router_temperature": 1.0}, "top and router_temperature are for a router on features"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        configured(DualLoRA, tiny_backbone(), **(QUICK | options))
    assert "\n" not in str(refused.value)
