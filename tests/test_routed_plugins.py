"""DLC whose gates are a router's: they follow the base's present features, and unfit settings are refused at once."""

import re
from typing import Any

import pytest
import torch
from streams import build, draw, fit_for, learn_all, stream
from torch import Tensor

from lamella.learner.store.state import learned_state, restore_state
from lamella.memory.task_scores import TaskRegression
from lamella.methods.dlc.dlc import DLC
from lamella.methods.dlc.routed import RoutedUnit
from lamella.methods.shared.routing import ON_FEATURES, Routing

PROJECTIONS = 40


def routed(router: str = "least-squares", **options: Any) -> DLC:
    return build("dlc", router=router, router_projections=PROJECTIONS, **options)


def pixels(method: DLC) -> tuple[Tensor, Tensor]:
    from lamella.data.transform import plain_view

    data = stream().test(2)
    return data.batch(torch.arange(len(data)), plain_view(method.backbone.transform)), data.labels


@pytest.fixture(scope="module", params=ON_FEATURES)
def learned(request: pytest.FixtureRequest) -> DLC:
    return learn_all(routed(request.param), stream()).eval()


def test_gates_are_the_weights_of_the_tasks(learned: DLC) -> None:
    x, _ = pixels(learned)
    with torch.no_grad():
        f = learned.tails(learned.tails.trunk(x), ["", *learned.plugins])
        scores = learned.unit.keys.scores(f[:, 0])
        weights = learned.routing.sharpened(scores).softmax(1).float()
        parts = [f[:, 0], *(weights[:, [i]] * f[:, i + 1] for i in range(3))]
        torch.testing.assert_close(learned.predict(x), learned.heads(torch.cat(parts, 1)))
    torch.testing.assert_close(weights.sum(1), torch.ones(len(x)))


def test_a_loaded_model_predicts_alike(learned: DLC) -> None:
    again = routed(learned.routing.router).eval()
    restore_state(again, learned_state(learned))
    x, _ = pixels(learned)
    with torch.no_grad():
        assert torch.equal(again.predict(x), learned.predict(x))


def test_the_router_is_that_of_the_present_features_of_all_kept_images() -> None:
    """Its statistics are computed anew: those of the features before the base moved would be stale."""
    method, scenario = routed(), stream()
    for i in range(2):
        fit = fit_for(method)
        fit.begin(str(i))
        data = method.base.with_exemplars(scenario[i].train)
        method.learn(scenario[i], fit)
    points = fit_for(method).features(data, method.tails.plain)
    fresh = Routing(router="least-squares", router_projections=PROJECTIONS).on_features(
        method.backbone.width, method.seed
    )
    assert isinstance(fresh, TaskRegression)
    for head in method.heads:
        own = torch.isin(data.labels, torch.tensor(head.classes))
        fresh.add(points[own], data.labels[own])
    assert isinstance(method.unit, RoutedUnit)
    assert len(method.unit.keys.tasks) == len(fresh.tasks) == 4
    torch.testing.assert_close(method.unit.keys.solution, fresh.solution, atol=1e-6, rtol=1e-6)


def test_the_base_is_what_it_is_without_a_router() -> None:
    plain, other = learn_all(build("dlc"), stream()), learn_all(routed(), stream())
    before, after = plain.base.state_dict(), other.base.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if ".branches." not in key)


def test_top_1_is_one_plugin_for_each_image() -> None:
    unit = RoutedUnit(5, Routing(router="nearest", top=1), 0)
    for t in range(3):
        unit.keys.add(draw(6, 5, name=f"task {t}") + t, torch.tensor([0, 0, 0, 1, 1, 1]) + 2 * t)
    gates = unit(draw(4, 4, 5, name="features"))
    assert sorted({round(float(g), 6) for g in gates.flatten()}) == [0.0, 1.0]
    assert gates.sum(1).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router": "arrow"}, "router 'arrow' does not fit dlc: its plugins sit on convolutions"),
        ({"router": "entropy"}, "router 'entropy' does not fit dlc: all plugins share one classifier"),
        ({"router": "nearst"}, "router 'nearst' is unknown; use one of none, nearest, gaussian, least-squares"),
        ({"router": "nearest", "gate": "softmax"}, "gate 'softmax' is one of the learned unit"),
        ({"top": 2}, "top and router_temperature are for a router, and router is 'none'"),
        ({"router": "nearest", "base": "lwf"}, "LwF keeps none; use the base replay, icarl or wa"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        build("dlc", **options)
    assert "\n" not in str(refused.value)


def test_classes_of_several_tasks_are_refused() -> None:
    unit = RoutedUnit(5, Routing(), 0)
    with pytest.raises(ValueError, match="class 1 belongs to several tasks"):
        unit.prepare(fit_for(build("dlc")), stream()[0].train, lambda x: x, [(0, 1), (1, 2)])
