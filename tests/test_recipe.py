"""Recipes: what they refuse, what the loop makes of them, and how a table of a configuration spells them out."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import tiny_backbone
from torch import Tensor, nn

from lamella import LoRA, Training
from lamella.adapters.adapter import Site, adapt, merge, using
from lamella.common.options import arguments, completed, options_of
from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.data.transform import InputTransform
from lamella.learner.config.document import build_method, complete, load_config, up_to_date
from lamella.learner.config.method_tables import complete_method
from lamella.methods import METHODS
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit
from lamella.training.schedules import FORMER_NAMES

TRANSFORM = InputTransform(16, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)


class Cut(BaseException):
    """Stands for a process that ends in the middle of a step."""


def points(n: int = 40) -> TensorSet:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return TensorSet(x, (x[:, 0] > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).requires_grad_(False)


def trained(
    training: Training, data: TensorSet, *, checkpoints: Checkpoints | None = None, stop_at: int | None = None,
    **options: Any,
) -> tuple[nn.Module, list[int]]:  # fmt: skip
    """A network after training, and the sizes of the batches it saw."""
    model, sizes = network(), []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if len(sizes) == stop_at:
            raise Cut
        sizes.append(len(x))
        return F.cross_entropy(model(x), y)

    fit = Fit(model, TRANSFORM, device="cpu", checkpoints=checkpoints)
    try:
        fit(data, loss, model.parameters(), training, **options)
    except Cut:
        pass
    return model, sizes


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"first_epochs": 0}, "first_epochs is 0; it must be a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size is -1; it must be a whole number of at least 1"),
        ({"min_steps": 0}, "min_steps is 0; it must be a whole number of at least 1"),
        ({"accumulate": 0}, "accumulate is 0; it must be a whole number of at least 1"),
        ({"epochs": "3"}, "epochs is '3'; it must be a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number of at least 1"),
        ({"lr": "fast"}, "lr is 'fast'; it must be a number"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"lr": math.nan}, "lr is nan; it must be above 0"),
        ({"head_lr": -1.0}, "head_lr is -1.0; it must be above 0"),
        ({"clip": 0.0}, "clip is 0.0; it must be above 0"),
        ({"momentum": 1.0}, r"momentum is 1.0; it must be within \[0, 1\), and 0.9 is usual"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be 0 or more"),
        ({"optimizer": "adm"}, "optimizer 'adm' is unknown; use one of adam, adamw, sgd"),
        ({"schedule": "linear"}, "schedule 'linear' is unknown; use one of constant, cosine, inflora, .*milestones"),
        ({"schedule": "milestones", "milestones": (2,)}, r"milestone 2 is outside \(0, 1\]"),
        ({"milestones": (0.5,)}, r"milestones \[0.5\] belong to schedule 'milestones', but schedule is 'constant'"),
    ],
)
def test_a_training_that_cannot_be_is_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number of at least 1"),
        ({"rank": 2.0}, "rank is 2.0; it must be a whole number of at least 1"),
        ({"sites": "query"}, r"sites is 'query'; it must be a list of roles such as \['query', 'value'\]"),
        ({"sites": ()}, r"sites is \(\); it must be a list of roles"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be above 0"),
        ({"alpha": "x"}, "alpha is 'x'; it must be a number"),
        ({"explained": "x"}, "explained is 'x'; it must be a number"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be within \[0, 1\)"),
    ],
)
def test_branches_that_cannot_be_are_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**wrong)


def test_the_schedules_by_hand() -> None:
    def factors(schedule: str, epochs: int, **options: Any) -> list[float]:
        training = Training(epochs=epochs, schedule=schedule, **options)
        return [round(training.factor(epoch), 3) for epoch in range(epochs)]

    assert factors("constant", 3) == [1, 1, 1]
    assert factors("cosine", 4) == [1.0, 0.854, 0.5, 0.146]
    assert factors("inflora", 3) == [1.0, 0.713, 0.016]
    assert factors("inflora-code", 3) == [1.0, 1.0, 0.713]
    assert factors("milestones", 5, milestones=(0.8,)) == [1, 1, 1, 1, 0.1]
    assert factors("milestones", 2) == [1, 1]


def test_the_first_task_may_have_epochs_of_its_own() -> None:
    training = Training(epochs=5, first_epochs=9, schedule="milestones", milestones=(0.5,))
    assert (training.of_task(0).epochs, training.of_task(1).epochs) == (9, 5)
    assert (training.of_task(0).factor(4), training.of_task(1).factor(4)) == (1.0, 0.1)
    assert Training(epochs=5).of_task(0).epochs == 5


@pytest.mark.parametrize(("min_steps", "steps"), [(None, 10), (7, 10), (11, 15), (20, 20)])
def test_epochs_are_added_until_there_are_enough_steps(min_steps: int | None, steps: int) -> None:
    data, training = points(), Training(epochs=2, lr=0.05, batch_size=8, min_steps=min_steps)
    _, sizes = trained(training, data)
    assert len(sizes) == steps, "whole epochs of 5 steps"


def test_fit_takes_a_recipe_or_keywords_or_keywords_in_place_of_fields() -> None:
    data, training = points(), Training(epochs=2, lr=0.05, batch_size=8)
    expected, _ = trained(training, data)
    by_keywords, _ = trained(Training(), data, epochs=2, lr=0.05, batch_size=8)
    assert same(expected, by_keywords)
    again, sizes = trained(training, data, epochs=1)
    assert (len(sizes), same(again, expected)) == (5, False)
    with pytest.raises(TypeError, match="epoch"):
        trained(training, data, epoch=1)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("n", [40, 37, 33])
def test_gradients_of_several_batches_make_the_step_of_one_that_is_as_large(optimizer: str, n: int) -> None:
    """33 points leave one over for a batch of 32, which then has 33; 37 leave a last step of one batch and a part."""
    small = Training(epochs=3, lr=0.05, batch_size=8, accumulate=4, optimizer=optimizer)
    large = Training(epochs=3, lr=0.05, batch_size=32, optimizer=optimizer)
    (one, sizes), (other, _) = trained(small, points(n)), trained(large, points(n))
    assert max(sizes) <= 9
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut_at", [1, 3, 5, 8])
def test_a_training_cut_off_between_the_batches_of_a_step_ends_bit_equal(tmp_path: Path, cut_at: int) -> None:
    training = Training(epochs=2, lr=0.05, batch_size=8, accumulate=3, clip=0.1)  # steps of 3 and of 2 batches
    whole, sizes = trained(training, points())
    _, before = trained(training, points(), checkpoints=Checkpoints(tmp_path, 0.0), stop_at=cut_at)
    resumed, after = trained(training, points(), checkpoints=Checkpoints(tmp_path, 0.0))
    assert len(before) == cut_at
    assert len(after) == len(sizes) - {1: 0, 3: 3, 5: 5, 8: 8}[cut_at], (
        "the step under way is done again from its start"
    )
    assert same(whole, resumed)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_gradients_are_shortened_to_the_limit_and_left_alone_below_it(limit: float) -> None:
    w = nn.Parameter(torch.zeros(2))
    fit = Fit(nn.ParameterList([w]), TRANSFORM, device="cpu")
    slope = torch.tensor([3.0, 4.0])  # of length 5
    one = TensorSet(torch.ones(1, 1), torch.zeros(1))
    fit(one, lambda x, y: (w * slope).sum(), [w], epochs=1, lr=1.0, batch_size=1, optimizer="sgd", clip=limit)
    torch.testing.assert_close(-w.detach(), slope * min(1, limit / 5))


def adapted(lora: LoRA) -> tuple[nn.Module, tuple[Site, ...]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).requires_grad_(False)
    sites = adapt(model, "0")
    for site in sites:
        site.layer.dropout = lora.dropout
    return model, sites


def test_alpha_over_rank_scales_the_update_beside_the_weight_and_merged_into_it() -> None:
    _, sites = adapted(LoRA())
    (branch,) = LoRA(rank=4, alpha=8.0).grow(sites, "a", generator(0, "a"))
    branch.B.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(5, 6)
    with using(sites):
        plain = sites[0].layer(x)
    expected = plain + 2.0 * x @ branch.A.T @ branch.B.T
    torch.testing.assert_close(sites[0].layer(x), expected)
    merge(sites, "a")
    torch.testing.assert_close(sites[0].layer(x), expected)
    assert LoRA(rank=4).scale == 1.0


def test_a_recipe_attaches_to_the_layers_of_a_backbone() -> None:
    sites = LoRA(sites=("query", "value"), blocks=2, dropout=0.25).attach(tiny_backbone())
    assert len(sites) == 4
    assert {site.layer.dropout for site in sites} == {0.25}


def dropped(dropout: float, **options: Any) -> tuple[nn.Module, list[Tensor]]:
    """A network with branches after training, and the outputs of its first layer in each step."""
    model, sites = adapted(LoRA(dropout=dropout))
    branches = LoRA(rank=2).grow(sites, "a", generator(0, "a"))
    stop_at, seen = options.pop("stop_at", None), []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if len(seen) == stop_at:
            raise Cut
        seen.append(sites[0].layer(x).detach())
        return F.cross_entropy(model(x), y)

    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    fit = Fit(model, TRANSFORM, device="cpu", **options)
    try:
        fit(TensorSet(x, (x[:, 0] > 0).long()), loss, [f for b in branches for f in (b.A, b.B)],
            epochs=2, lr=0.05, batch_size=8)  # fmt: skip
    except Cut:
        pass
    return model, seen


def test_inputs_of_branches_are_dropped_in_training_and_nowhere_else() -> None:
    (plain, without), (model, seen) = dropped(0.0), dropped(0.5)
    assert without[0].equal(seen[0]), "B is zero at the start, so what is dropped does not show"
    assert not without[2].equal(seen[2])
    x = torch.randn(5, 6)
    assert model(x).equal(model(x)), "a prediction drops nothing"
    factors = [dict(net.named_parameters())["0.branches.a.0.B"] for net in (plain, model)]
    assert not factors[0].equal(factors[1])


def test_what_is_dropped_is_the_named_share_and_the_rest_makes_up_for_it() -> None:
    _, sites = adapted(LoRA(dropout=0.25))
    layer: Any = sites[0].layer
    assert layer._dropped(torch.ones(3)).equal(torch.ones(3))
    layer.draws = torch.Generator().manual_seed(0)
    values = layer._dropped(torch.ones(20_000))
    assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert values.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("cut_at", [1, 2, 4])
def test_a_training_with_dropout_that_is_cut_off_ends_bit_equal(tmp_path: Path, cut_at: int) -> None:
    whole, every = dropped(0.5)
    dropped(0.5, checkpoints=Checkpoints(tmp_path, 0.0), stop_at=cut_at)
    resumed, after = dropped(0.5, checkpoints=Checkpoints(tmp_path, 0.0))
    assert len(after) == len(every) - cut_at
    assert same(whole, resumed)


class Toy:
    def __init__(
        self,
        backbone: object,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(rank=3),
        training: Training = Training(epochs=7, schedule="milestones", milestones=(0.5, 0.75)),
        energy: float = 0.95,
    ) -> None:
        self.lora, self.training, self.energy = lora, training, energy


def flat(*recipes: Any) -> dict[str, Any]:
    return {field.name: getattr(recipe, field.name) for recipe in recipes for field in fields(recipe)}


def test_the_fields_of_a_recipe_are_keys_with_the_defaults_of_the_methods_own() -> None:
    options = options_of(Toy, without={"seed"})
    assert {key: option.default for key, option in options.items()} == {
        **flat(LoRA(rank=3), Training(epochs=7, schedule="milestones", milestones=(0.5, 0.75))),
        "energy": 0.95,
    }
    built = arguments("method", {"rank": 8, "epochs": 1, "milestones": [0.25], "energy": 0.5}, options)
    assert built == {
        "lora": LoRA(rank=8),
        "training": Training(epochs=1, schedule="milestones", milestones=(0.25,)),
        "energy": 0.5,
    }
    assert arguments("method", {"energy": 0.5}, options) == {"energy": 0.5}


SHARES = st.lists(st.floats(0.01, 1.0), max_size=3)
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.integers(1, 64),
        "alpha": st.floats(0.5, 64),
        "sites": st.lists(st.sampled_from(["query", "value", "key+value"]), min_size=1, max_size=2),
        "dropout": st.floats(0, 0.9),
        "epochs": st.integers(1, 300),
        "lr": st.floats(1e-6, 1),
        "clip": st.floats(0.1, 10),
        "milestones": SHARES,
        "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
        "energy": st.floats(0, 1),
    },
)


@settings(max_examples=100, deadline=None)
@given(TABLES)
def test_a_table_its_completion_and_what_it_builds_say_the_same(table: dict[str, Any]) -> None:
    options = options_of(Toy, without={"seed"})
    full = completed("method", table, options)
    assert completed("method", full, options) == full
    assert table.items() <= full.items()
    toy = Toy(None, **arguments("method", full, options))
    wanted = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    assert flat(toy.lora, toy.training).items() >= {k: v for k, v in wanted.items() if k != "energy"}.items()
    assert json.loads(json.dumps(full)) == full, "a configuration is plain data"


def test_a_value_that_a_recipe_refuses_is_refused_when_the_table_is_read() -> None:
    with pytest.raises(ValueError, match="epochs is 0; it must be a whole number of at least 1"):
        completed("method", {"epochs": 0}, options_of(Toy, without={"seed"}))
    with pytest.raises(ValueError, match=r"method\.clip = 'small' should be a number"):
        completed("method", {"clip": "small"}, options_of(Toy, without={"seed"}))


def test_an_author_hears_of_keys_that_collide_and_of_a_recipe_without_a_default() -> None:
    @dataclass(frozen=True)
    class Ranked:
        rank: int = 1

    def build(*, lora: LoRA = LoRA(), other: Ranked = Ranked()) -> None: ...

    def bare(*, lora: LoRA) -> None: ...

    cases: list[tuple[Callable[..., None], str]] = [
        (build, "'rank' is a key of two arguments of .*build; rename one of them"),
        (bare, "the argument 'lora' is a dataclass, so its keys need the defaults of an instance"),
    ]
    for wrong, message in cases:
        with pytest.raises(TypeError, match=message):
            options_of(wrong)


# what an older version stored -----------------------------------------------------------------------------------------

STORED: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "configurations-0.1.json").read_text())
"""Completed configurations as version 0.1 wrote them: all shipped ones, and every method as it is by default."""
LATER: dict[str, dict[str, Any]] = {"backbone": {"storage": "float32"}}
"""Options of other tables than [method] that were added since, with what was computed before."""


def renamed(table: dict[str, Any]) -> dict[str, Any]:
    return table | {key: FORMER_NAMES[value] for key, value in table.items() if key == "schedule"}


def removed(table: dict[str, Any]) -> dict[str, Any]:
    return getattr(METHODS[table["name"]], "removed", {})


@pytest.mark.parametrize("name", STORED)
def test_a_stored_configuration_means_what_it_meant(name: str) -> None:
    stored = STORED[name]
    now = complete(stored)
    expected = {key: stored[key] | LATER.get(key, {}) for key in now if key != "method"}
    assert {key: table for key, table in now.items() if key != "method"} == expected
    levels = [(stored["method"], now["method"])]
    levels += [(level["base"], done["base"]) for level, done in levels if "base" in level]
    for before, after in levels:
        gone = removed(before)
        kept = {k: v for k, v in before.items() if k not in gone and not isinstance(v, dict)}
        assert renamed(kept).items() <= after.items()
        assert gone.items() <= before.items(), "an option goes with the value it had by default"
    assert complete(now) == now


CHANGED = {"sdlora": {"lr": 8e-3, "optimizer": "sgd", "schedule": "constant"}}
"""Defaults of version 0.1 that were not those of the authors' code, and what they are now."""


@pytest.mark.parametrize("name", [name for name in STORED if name.endswith(" by default")])
def test_the_defaults_of_every_method_are_what_they_were(name: str) -> None:
    stored = STORED[name]["method"]
    bare = {"base": {"name": stored["base"]["name"]}} if "base" in stored else {}
    now = complete_method({"name": stored["name"]} | bare, {})
    for before, after in ((stored, now), *([(stored["base"], now["base"])] if bare else [])):
        kept = {k: v for k, v in before.items() if k not in removed(before) and k != "base"}
        assert (renamed(kept) | CHANGED.get(before["name"], {})).items() <= after.items()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_stored_method_is_trained_as_before_its_option_of_momentum(optimizer: str) -> None:
    """Version 0.1 trained `sdlora` without momentum and stored none; a new table has the default, 0.9."""
    stored = STORED["sdlora by default"]
    stored = stored | {"method": stored["method"] | {"optimizer": optimizer}}
    assert "momentum" not in stored["method"]
    now = up_to_date(stored)["method"]
    assert (now["momentum"], now["optimizer"], now["lr"], now["schedule"]) == (0.0, optimizer, 5e-4, "inflora-code")
    assert complete_method({"name": "sdlora", "optimizer": optimizer}, {})["momentum"] == 0.9
    kept = stored | {"method": stored["method"] | {"momentum": 0.5}}
    assert up_to_date(kept)["method"]["momentum"] == 0.5


def test_sdlora_is_trained_by_default_as_the_authors_code_is() -> None:
    method: Any = build_method({"method": complete_method({"name": "sdlora"}, {}), "run": {"seed": 0}}, tiny_backbone())
    assert method.recipe == Training(epochs=20, lr=8e-3, batch_size=128, optimizer="sgd", momentum=0.9)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "olora", "norm_penalty": 0.3}, "method.norm_penalty = 0.3 is not an option any more: .* 0.0 only"),
        ({"name": "memo", "train_trunk": False}, "method.train_trunk = False is not an option any more"),
        ({"name": "inflora", "calibrate": {"score_layers": 0.5}}, "method.calibrate.score_layers = 0.5 is not an op"),
        (
            {"name": "dlc", "aggregate": "sum", "base": {"name": "wa"}},
            "method.aggregate = 'sum' is not an option any more: this version computes 'concat' only; take it away, or",
        ),
    ],
)
def test_another_value_of_an_option_that_is_gone_is_refused_in_one_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method({"method": complete_method(table, {}), "run": {"seed": 0}}, tiny_backbone())


def test_a_schedule_goes_with_its_milestones_when_another_method_is_named() -> None:
    table = load_config("digits", ["method.name=replay"])["method"]
    assert (table["schedule"], table["milestones"]) == ("milestones", [0.47, 0.705])
    table = load_config("digits", ["method.name=linear-probe"])["method"]
    assert (table["schedule"], table["epochs"]) == ("inflora-code", 3)
    table = load_config("inflora-domainnet-5", ["method.name=replay"])["method"]
    assert (table["schedule"], table["milestones"], table["momentum"]) == ("milestones", [0.8], 0.9)
    with pytest.raises(ValueError, match="belong to schedule 'milestones', but schedule is 'cosine'"):
        load_config("mnist-5-scratch", ["method.base.schedule=cosine"])


def test_published_settings_with_momentum_are_built_as_they_are_written() -> None:
    expected = {
        "sdlora-cifar100-10": Training(epochs=20, lr=8e-3, optimizer="sgd", momentum=0.9, head_start="kaiming"),
        "ranpac-cifar100-10": Training(
            epochs=20, lr=0.01, batch_size=48, optimizer="sgd", momentum=0.9, weight_decay=5e-4, schedule="cosine"
        ),
        "inflora-domainnet-5": Training(
            epochs=5, lr=5e-3, head_lr=1e-2, optimizer="sgd", momentum=0.9, schedule="milestones", milestones=(0.8,)
        ),
    }
    for name, training in expected.items():
        small = ["method.projections=50"] if name.startswith("ranpac") else []
        method: Any = build_method(load_config(name, small), tiny_backbone())
        assert method.recipe == training
