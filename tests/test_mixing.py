"""Mixing: known coefficients are found, a domain between two learned ones is predicted, and a new task starts there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Site, adapt, grow, using
from lamella.adapters.mixed import grow_sum
from lamella.adapters.pairs import Pair, truncated
from lamella.common.randomness import generator
from lamella.training.mixing import Mixing, mix

D_IN, D_OUT, RANK = 10, 8, 2
KNOWN = {"a": 0.7, "b": 0.0, "c": -0.4}


def draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(0, "mixing", name), dtype=torch.float64)


def network(names: str = "abc", **options: Any) -> tuple[nn.Module, list[Site]]:
    layer = nn.Linear(D_IN, D_OUT).double()
    layer.weight.data.copy_(0.3 * draw(D_OUT, D_IN, name="W"))
    layer.bias.data.copy_(0.1 * draw(D_OUT, name="bias"))
    model = nn.Sequential(layer).requires_grad_(False)
    sites = list(adapt(model, "0", slice(2, D_OUT)))
    for name in names:
        (branch,) = grow(sites, name, RANK, scale=0.5, generator=generator(0, name), **options)
        branch.B.data.copy_(draw(D_OUT - 2, RANK, name=name))
    return model, sites


def outputs(model: nn.Module, sites: list[Site], coefficients: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), using(sites, coefficients):
        return model(x)


def distance(model: nn.Module, sites: list[Site], samples: int = 6) -> Callable[[], Tensor]:
    """The squared error on a few samples whose outputs the known coefficients have made."""
    x = draw(samples, D_IN, name="few")
    y = outputs(model, sites, KNOWN, x)
    return lambda: F.mse_loss(model(x), y)


def test_known_coefficients_are_found_from_six_samples() -> None:
    model, sites = network()
    found = mix(sites, list(KNOWN), distance(model, sites), Mixing(evaluations=600, penalty=0.0))
    for name, wanted in KNOWN.items():
        assert abs(found.coefficients[name] - wanted) < 1e-3
    assert found.loss < 1e-6 < found.bare
    assert found.evaluations <= 600


def test_the_penalty_leaves_out_what_does_not_help() -> None:
    model, sites = network()
    x = draw(6, D_IN, name="few")
    y = outputs(model, sites, {}, x)
    found = mix(sites, list("abc"), lambda: F.mse_loss(model(x), y))
    assert found.coefficients == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert found.loss == found.bare == 0.0


def test_one_adapter_is_mixed_too_and_bounds_hold() -> None:
    model, sites = network()
    x = draw(6, D_IN, name="few")
    y = outputs(model, sites, {"a": 0.7}, x)
    found = mix(sites, ["a"], lambda: F.mse_loss(model(x), y), Mixing(penalty=0.0))
    assert abs(found.coefficients["a"] - 0.7) < 1e-2
    bounded = mix(sites, ["a"], lambda: F.mse_loss(model(x), y), Mixing(bound=0.2, penalty=0.0))
    assert 0.18 < bounded.coefficients["a"] <= 0.2


def test_a_domain_between_two_learned_ones_is_predicted_better_than_by_either() -> None:
    model, sites = network()
    between = {"a": 0.5, "b": 0.5}
    x, new = draw(60, D_IN, name="few"), draw(2000, D_IN, name="new")
    y, wanted = (outputs(model, sites, between, of).argmax(1) for of in (x, new))
    found = mix(sites, list("abc"), lambda: F.cross_entropy(4 * model(x), y), Mixing(penalty=0.0, evaluations=400))
    share = {
        name: float((outputs(model, sites, own, new).argmax(1) == wanted).double().mean())
        for name, own in {"mix": found.coefficients, "a": {"a": 1.0}, "b": {"b": 1.0}, "none": {}}.items()
    }
    assert share["mix"] > 0.9
    assert share["mix"] > max(share["a"], share["b"], share["none"]) + 0.05


def test_the_same_seed_finds_the_same_and_adapters_act_as_before() -> None:
    model, sites = network()
    with using(sites, "b"):
        found = [mix(sites, list("abc"), distance(model, sites), Mixing(evaluations=60), seed=s) for s in (1, 1, 2)]
        assert list(sites[0].layer.chosen) == ["b"]
    assert found[0] == found[1] != found[2]


def test_a_loss_that_is_not_finite_is_never_chosen() -> None:
    model, sites = network()
    near = distance(model, sites)

    def loss() -> float:
        return float("nan") if float(sites[0].layer.chosen["a"]) > 0.3 else float(near())  # type: ignore[arg-type]

    found = mix(sites, list("abc"), loss, Mixing(penalty=0.0))
    assert found.coefficients["a"] <= 0.3
    assert found.loss < found.bare


def test_a_new_adapter_starts_as_the_sum() -> None:
    model, sites = network()
    x = draw(20, D_IN, name="new")
    wanted = outputs(model, sites, KNOWN, x)
    assert grow_sum(sites, "exact", KNOWN) == 1.0
    assert grow_sum(sites, "wide", KNOWN, rank=6, scale=0.25, generator=generator(0, "wide")) == pytest.approx(1.0)
    for name in ("exact", "wide"):
        torch.testing.assert_close(outputs(model, sites, name, x), wanted, rtol=0, atol=1e-12)
    (exact,), (wide,) = (sites[0].layer.of(name) for name in ("exact", "wide"))
    assert exact.rank == 4, "b has the coefficient 0"
    assert (wide.A[4:] != 0).all(), "rows that can learn"
    assert not wide.B[:, 4:].any()


def test_a_start_of_lower_rank_is_the_nearest_and_says_what_it_keeps() -> None:
    _, sites = network()
    layer = sites[0].layer
    total = sum(c * b.delta(layer.weight.shape) for name, c in KNOWN.items() for b in layer.of(name))
    kept = grow_sum(sites, "low", KNOWN, rank=1)
    nearest, share = truncated(Pair(torch.eye(D_IN, dtype=torch.float64), torch.as_tensor(total)), 1)
    torch.testing.assert_close(layer.of("low")[0].delta(layer.weight.shape), nearest.delta(), rtol=0, atol=1e-12)
    assert kept == pytest.approx(share)
    assert kept < 1


def test_a_sum_that_is_zero_is_a_start_that_changes_nothing() -> None:
    model, sites = network()
    x = draw(5, D_IN, name="x")
    assert grow_sum(sites, "new", dict.fromkeys(KNOWN, 0.0), rank=3, generator=generator(0, "new")) == 1.0
    assert grow_sum(sites, "exact", {"a": 0.0}) == 1.0
    (branch,) = sites[0].layer.of("new")
    assert branch.A.norm(dim=1).min() > 0, "its A is drawn, so that it can be trained"
    assert torch.equal(outputs(model, sites, "new", x), outputs(model, sites, (), x))


def test_convolutions_start_as_the_sum_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3)).double().requires_grad_(False)
    sites = list(adapt(model, "0"))
    for name in "ac":
        grow(sites, name, RANK, generator=generator(0, name))[0].B.data.copy_(draw(5, RANK, 1, 1, name=name))
    x, own = draw(2, 3, 6, 6, name="image"), {"a": 0.7, "c": -0.4}
    grow_sum(sites, "new", own)
    torch.testing.assert_close(outputs(model, sites, "new", x), outputs(model, sites, own, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda sites: mix(sites, [], lambda: 0.0), "it must be a list of at least one"),
        (lambda sites: mix(sites, ["a", "a"], lambda: 0.0), "each named once"),
        (lambda sites: mix(sites, ["a", "x"], lambda: 0.0), "no adapter 'x'"),
        (lambda sites: mix(sites, ["a"], lambda: float("nan")), "the loss without adapters is not finite"),
        (lambda sites: Mixing(evaluations=0), "evaluations 0 must be a whole number of at least 1"),
        (lambda sites: mix(sites, "a", lambda: 0.0), "names is 'a'; it must be a list"),
        (lambda sites: mix(sites, ["a", "b"], lambda: 0.0, Mixing(evaluations=3)), "are too few .* at least 7"),
        (lambda sites: Mixing(bound=0.0), "bound 0.0 must be"),
        (lambda sites: Mixing(penalty=-1.0), "penalty -1.0 must be"),
        (lambda sites: grow_sum(sites, "new", {}), "must be finite numbers"),
        (lambda sites: grow_sum(sites, "new", {"a": float("inf")}), "must be finite numbers"),
        (lambda sites: grow_sum(sites, "new", {"x": 1.0}), "no adapter 'x'; there are: a, b, c"),
        (lambda sites: grow_sum(sites, "new", {"a": 1.0}, scale=0.0), "scale 0.0 must be"),
        (lambda sites: grow_sum(sites, "b", {"a": 1.0}), "there is an adapter 'b' already"),
        (lambda sites: grow_sum(sites, "new", {"a": 1.0}, rank=0), "rank 0 is too small"),
        (lambda sites: grow_sum([sites[0]._replace(rows=slice(0, 4))], "new", {"a": 1.0}), "changes the rows 2 to 8"),
        (lambda sites: grow_sum(network("a", form="dora")[1], "new", {"a": 1.0}), "is a DoRA, has a gate"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused_in_one_line(attempt: Callable[[list[Site]], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        attempt(network()[1])
    assert "\n" not in str(error.value)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cmaes", None)
    model, sites = network()
    with pytest.raises(RuntimeError, match=r"pip install 'lamella\[mixing\]'"):
        mix(sites, list("abc"), distance(model, sites))
