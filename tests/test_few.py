"""Branches of which each sample has few: the same outputs as all branches computed, at the price of those that act."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lamella.adapters.adapter import AdaptedLinear, Branch, Site, adapt, grow, using
from lamella.adapters.few import parted
from lamella.common.randomness import generator

SAMPLES, TOKENS, D_IN, D_OUT, HELD = 9, 5, 12, 18, 20
Weights = Mapping[str, Any]


def draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(0, "few", name, *shape), dtype=torch.float64)


def layer(held: int = HELD, ranks: tuple[int, ...] = (3,), **options: Any) -> tuple[nn.Module, list[Site]]:
    """One layer with many adapters, each on two sites of its rows; their ranks take turns."""
    model = nn.Sequential(nn.Linear(D_IN, D_OUT)).double().requires_grad_(False)
    sites = [*adapt(model, "0", slice(0, 6)), *adapt(model, "0", slice(4, D_OUT))]
    for k in range(held):
        rank = ranks[k % len(ranks)]
        for i, branch in enumerate(grow(sites, f"t{k}", rank, generator=generator(0, k), scale=0.5, **options)):
            for j, factor in enumerate(branch.factors):
                factor.data.add_(draw(*factor.shape, name=f"{k} {i} {j}"), alpha=0.3)
    return model, sites


def choice(top: int, held: int = HELD, none: int = 2) -> dict[str, Tensor]:
    """Coefficients (n,) of both signs, of which so many of a sample are not zero; the last samples have none."""
    weights = torch.zeros(SAMPLES, held, dtype=torch.float64)
    for i in range(SAMPLES - none):
        own = torch.randperm(held, generator=generator(0, "own", i))[:top]
        weights[i, own] = draw(top, name=f"weights {i}")
    return {f"t{k}": weights[:, k] for k in range(held)}


def both(model: Callable[[Tensor], Tensor], sites: list[Site], weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs without recorded gradients, and with them, where every branch is computed."""
    with using(sites, weights):
        with torch.no_grad():
            found = model(x)
        return found, model(x).detach()


def flops(model: nn.Module, sites: list[Site], weights: Weights, x: Tensor) -> int:
    def added(y: Any, first: Any, second: Any, **rest: Any) -> int:
        return 2 * first.numel() * second[-1]  # shapes

    in_place: Any = {torch.ops.aten.addmm_: added, torch.ops.aten.baddbmm_: added}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counted, torch.no_grad(), using(sites, weights):
        model(x)
    return counted.get_total_flops()


@pytest.mark.parametrize("top", [0, 1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"form": "dora"}, {"form": "vera"}], ids=["lora", "dora", "vera"])
@pytest.mark.parametrize("shape", [(SAMPLES, TOKENS, D_IN), (SAMPLES, D_IN), (SAMPLES, 2, 3, D_IN)], ids=len)
def test_few_branches_of_a_sample_add_what_all_of_them_would(
    shape: tuple[int, ...], options: dict[str, Any], top: int
) -> None:
    model, sites = layer(**options)
    found, wanted = both(model, sites, choice(top), draw(*shape, name="x"))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    with torch.no_grad(), using(sites):
        bare = model(draw(*shape, name="x"))
    assert top == 0 or (found - bare).abs().max() > 0.1


def test_each_sample_gets_the_sum_of_its_own_updates() -> None:
    model, sites = layer(ranks=(1, 3, 4))
    x, weights = draw(SAMPLES, TOKENS, D_IN, name="x"), choice(2)
    found, _ = both(model, sites, weights, x)
    W, bias = (getattr(sites[0].layer, name) for name in ("weight", "bias"))
    for i in range(SAMPLES):
        own = W.clone()
        for name, coefficients in weights.items():
            for branch in sites[0].layer.of(name):
                own[branch.rows] += coefficients[i] * branch.scale * branch.B @ branch.A
        torch.testing.assert_close(found[i], x[i] @ own.T + bias, rtol=0, atol=1e-12)


def test_in_float32_it_differs_by_rounding_alone() -> None:
    model, sites = layer()
    weights = {name: value.float() for name, value in choice(1).items()}
    found, wanted = both(model.float(), sites, weights, draw(SAMPLES, TOKENS, D_IN, name="x").float())
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_coefficients_may_be_numbers_gates_functions_or_one_for_each_row_of_a() -> None:
    model, sites = layer()
    x, weights = draw(SAMPLES, TOKENS, D_IN, name="x"), choice(1)
    gates = draw(SAMPLES, 3, name="rows")
    mixed: dict[str, Any] = {name: weights[name] for name in weights if name not in ("t0", "t1")}
    mixed |= {"t0": 0.7, "t1": lambda x: x.mean((1, 2)), "t2": weights["t2"][:, None] * gates}
    for branch in sites[0].layer.of("t3"):
        branch.gate = draw(SAMPLES, name="gate")
    found, wanted = both(model, sites, mixed, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_branches_for_class_tokens_beside_them_act_on_class_tokens_alone() -> None:
    model, sites = layer()
    branches: list[Branch] = grow(sites, "first", 3, generator=generator(0, "first"), tokens="class")
    for branch in branches:
        branch.B.data.fill_(0.2)
    weights = choice(1) | {"first": draw(SAMPLES, name="first")}
    found, wanted = both(model, sites, weights, draw(SAMPLES, TOKENS, D_IN, name="x"))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_parts_of_tokens_and_rows_are_those_of_the_whole() -> None:
    model, sites = layer()
    x, adapted = draw(SAMPLES, TOKENS, D_IN, name="x"), cast(AdaptedLinear, sites[0].layer)
    with torch.no_grad(), using(sites, choice(1)):
        whole = model(x)
        parts = adapted.forward_parts(x, (slice(0, 1), slice(0, 5)), (slice(1, None), slice(5, 18)))
    torch.testing.assert_close(parts[0], whole[:, :1, :5], rtol=0, atol=1e-12)
    torch.testing.assert_close(parts[1], whole[:, 1:, 5:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("top", [1, 2])
def test_products_do_not_grow_with_the_number_of_adapters_that_are_held(top: int) -> None:
    x = draw(SAMPLES, TOKENS, D_IN, name="x")
    counted = [flops(*layer(held), choice(top, held), x) for held in (8, 80)]
    assert counted[0] == counted[1]
    bare = flops(*layer(8), {}, x)
    rank, rows = 3, 6 + 14
    assert counted[0] - bare == 2 * SAMPLES * TOKENS * top * rank * (2 * D_IN + rows)


def test_all_of_them_acting_costs_what_the_dense_form_costs() -> None:
    (model, sites), x = layer(), draw(SAMPLES, TOKENS, D_IN, name="x")
    assert flops(model, sites, choice(HELD), x) == flops(model, sites, dict.fromkeys(choice(1), 1.0), x)


def test_a_coefficient_of_zero_gets_its_gradient() -> None:
    model, sites = layer()
    weights = {name: value.requires_grad_() for name, value in choice(1).items()}
    with using(sites, weights):
        model(draw(SAMPLES, TOKENS, D_IN, name="x")).square().sum().backward()
    for coefficients in weights.values():
        assert coefficients.grad is not None
        assert (coefficients.grad != 0).all()


def test_an_empty_batch_and_few_adapters_stay_dense() -> None:
    model, sites = layer()
    with torch.no_grad(), using(sites, {name: value[:0] for name, value in choice(1).items()}):
        assert model(torch.zeros(0, TOKENS, D_IN, dtype=torch.float64)).shape == (0, TOKENS, D_OUT)
    with torch.no_grad():
        assert parted([], 3) == ([], [])
