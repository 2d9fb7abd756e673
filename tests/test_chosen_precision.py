"""fit.precision = "auto": what is chosen follows the measured times, is chosen once, and changes nothing else."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from PIL import Image
from streams import stream, tiny_backbone, tiny_residual_backbone

from lamella.backbones import Backbone
from lamella.experiments.run import run
from lamella.learner import prepared
from lamella.learner.config.document import load_config, on_device, to_toml
from lamella.learner.config.precision import as_in_runs, choose
from lamella.learner.learner import Learner
from lamella.learner.store.versions import load_manifest
from lamella.training import measured_precision

TINY = {"name": "test_vit", "weights": "random", "size": 32}
QUICK = ["backbone.name=test_vit", "backbone.weights=random", "backbone.size=32", "scenario.tasks=5",
         "method.name=nearest-mean", "method.align=false", "fit.device=cpu"]  # fmt: skip


class Clock:
    """Stands in for `interleaved`: gives the times it is told to, and counts how often it is asked."""

    def __init__(self) -> None:
        self.float32, self.bf16, self.asked = [1.0], [1.0], 0

    def __call__(self, forms: Mapping[str, Callable[[], object]], *_: Any, **options: Any) -> dict[str, list[float]]:
        self.asked += 1
        return {"float32": self.float32, "bf16": self.bf16}

    def tells(self, share: float) -> None:
        self.float32, self.bf16, self.asked = [2.0] * 3, [2.0 * share] * 3, 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    monkeypatch.setattr(measured_precision, "interleaved", stand_in)
    return stand_in


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, level in (("crow", 10), ("owl", 240)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.effect_noise((24, 24), 40).point(lambda v, at=level: (v + at) // 2).convert("RGB").save(
                tmp_path / "photos" / name / f"{i}.png"
            )
    return tmp_path / "photos"


def asks(device: str = "cpu") -> dict[str, Any]:
    return {"fit": {"device": device, "precision": "auto"}, "method": {"batch_size": 4}}


def stored(out: Path) -> dict[str, Any]:
    return tomllib.loads((out / "config.toml").read_text())["fit"]


def killed(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` ends where its first task would be learned."""

    def learn(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", learn)
        with pytest.raises(KeyboardInterrupt):
            act()


# what is chosen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "precision"), [(0.52, "bf16"), (0.89, "bf16"), (0.91, "float32"), (3.0, "float32")])
def test_bfloat16_is_chosen_where_it_is_clearly_faster(clock: Clock, share: float, precision: str) -> None:
    clock.tells(share)
    fit = choose(asks(), tiny_backbone())["fit"]
    assert fit == {
        "device": "cpu",
        "precision": precision,
        "measured": f"a step in bf16 took {share:.2f} of float32's time",
    }


def test_a_round_that_was_disturbed_does_not_decide(clock: Clock) -> None:
    clock.float32, clock.bf16 = [2.0, 2.0, 2.0], [1.0, 9.0, 1.0]
    assert choose(asks(), tiny_backbone())["fit"]["precision"] == "bf16"


@pytest.mark.filterwarnings("ignore::lamella.learner.config.precision.SlowPrecision")
def test_what_is_no_question_is_not_measured(clock: Clock) -> None:
    for precision in ("float32", "bf16"):
        config = asks() | {"fit": {"device": "cpu", "precision": precision}}
        assert choose(config, tiny_backbone()) == config
    assert Learner.create(backbone=TINY).config["fit"]["precision"] == "float32"
    assert clock.asked == 0


def test_where_a_step_fails_float32_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Backbone, x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no such kernel\nat somewhere.cpp")
        return self.model(x)

    monkeypatch.setattr(Backbone, "forward", forward)
    fit = choose(asks(), tiny_backbone())["fit"]
    assert (fit["precision"], fit["measured"]) == ("float32", "a step could not be timed: no such kernel")


def test_a_backbone_with_nothing_early_to_train_stays_in_float32() -> None:
    backbone = tiny_backbone()
    backbone.used_parameters = lambda: []  # type: ignore[method-assign]
    fit = choose(asks(), backbone)["fit"]
    assert fit["precision"] == "float32"
    assert "has no bias that could be trained" in fit["measured"]


@pytest.mark.parametrize("build", [tiny_backbone, tiny_residual_backbone])
def test_a_step_goes_back_to_the_start_in_both_precisions_and_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], Backbone]
) -> None:
    backbone = build()
    first = next(p for p in backbone.model.parameters() if p.ndim == 1)
    seen: set[tuple[bool, bool]] = set()
    step = measured_precision._step  # pyright: ignore[reportPrivateUsage]

    def noted(backbone: Backbone, x: torch.Tensor, early: torch.Tensor, precision: str) -> torch.Tensor:
        assert early is first
        slope = step(backbone, x, early, precision)
        seen.add((precision == "bf16", bool(slope.abs().sum() > 0)))
        return slope

    monkeypatch.setattr(measured_precision, "_step", noted)
    parts = [(name, module.training) for name, module in backbone.named_modules()]
    weights = {key: value.clone() for key, value in backbone.state_dict().items()}
    drawn = torch.get_rng_state()
    with torch.no_grad():
        choose(asks(), backbone)
        assert not torch.is_grad_enabled()
    assert seen == {(False, True), (True, True)}
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in backbone.parameters())
    assert parts == [(name, module.training) for name, module in backbone.named_modules()]
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_learner_that_measured_learns_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_precision, "ratio", lambda *_: 1.0)
    learners = [
        Learner.create(
            backbone=TINY,
            method={"name": "inflora+align", "epochs": 1, "batch_size": 8},
            fit={"device": "cpu", "precision": precision},
        )
        for precision in ("float32", "auto")
    ]
    states: list[dict[str, torch.Tensor]] = []
    for learner in learners:
        learner.learn(stream()[0])
        states.append(learner.method.state_dict())
    assert "measured" in learners[1].config["fit"]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_small_networks_are_timed_with_the_methods_batch_and_slow_ones_with_less(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    steps = measured_precision._steps  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(
        measured_precision, "_steps", lambda b, e, samples: (sizes.append(samples), steps(b, e, samples))[1]
    )
    clock.float32 = [0.001]
    choose(asks() | {"method": {"base": {"batch_size": 12}}}, tiny_backbone())
    assert sizes == [2, 4, 8, 12]
    sizes.clear()
    clock.float32 = [5.0]
    choose(asks() | {"method": {"batch_size": 64}}, tiny_backbone())
    assert sizes == [2, 2]


# and kept ------------------------------------------------------------------------------------------------------------


def test_a_learner_computes_with_the_choice_and_a_stored_one_is_not_asked_again(clock: Clock, tmp_path: Path) -> None:
    clock.tells(0.5)
    learner = Learner.create(backbone=TINY, method="nearest-mean", fit={"precision": "auto", "device": "cpu"})
    assert learner.fit().precision == "bf16"
    learner.learn(stream()[0])
    learner.save(tmp_path / "model")
    clock.tells(2.0)
    again = Learner.load(tmp_path / "model")
    assert (again.fit().precision, again.config, clock.asked) == ("bf16", on_device(learner.config, None), 0)


def test_a_run_records_the_choice_and_goes_on_with_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = load_config("digits", [*QUICK, "fit.precision=auto"]), tmp_path / "run"
    clock.tells(0.5)
    killed(monkeypatch, lambda: run(config, out))
    line = "precision: bf16 (measured: a step in bf16 took 0.50 of float32's time)\n"
    assert line in capsys.readouterr().out
    assert stored(out)["precision"] == "bf16"
    clock.tells(2.0)
    run(config, out, resume=True)
    assert clock.asked == 0
    assert line in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["config"]["fit"] == stored(out)
    assert load_manifest(out / "model")["config"]["fit"] == {**stored(out), "device": "auto"}
    assert stored(out)["measured"] == "a step in bf16 took 0.50 of float32's time"
    run(config, out, resume=True)  # finished
    run(load_config("digits", [*QUICK, "fit.precision=bf16"]), out, resume=True)
    again = load_config(out / "config.toml")
    assert to_toml(again) == (out / "config.toml").read_text()
    run(again, out, resume=True)
    for other in (["fit.precision=float32"], ["fit.precision=auto", "run.seed=1"]):
        with pytest.raises(ValueError, match="another configuration"):
            run(load_config("digits", [*QUICK, *other]), out, resume=True)
    assert clock.asked == 0


def test_a_run_in_a_precision_that_was_given_is_none_that_was_chosen(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed(monkeypatch, lambda: run(load_config("digits", QUICK), tmp_path / "run"))
    with pytest.raises(ValueError, match="another configuration"):
        run(load_config("digits", [*QUICK, "fit.precision=auto"]), tmp_path / "run", resume=True)
    assert clock.asked == 0


@pytest.mark.slow
def test_all_seeds_share_one_choice_also_those_that_come_later(clock: Clock, lamella: Run, tmp_path: Path) -> None:
    command = ["run", "digits", *QUICK, "fit.precision=auto", "--out", tmp_path / "runs", "--quiet"]
    clock.tells(0.5)
    assert lamella(*command, "--seeds", 2)[0] == 0
    assert clock.asked == 1 + 1  # with 2 images and then with more: the first seed's alone
    clock.tells(2.0)
    code, text, _ = lamella(*(word for word in command if word != "--quiet"), "--seeds", 3, "--resume")
    assert (code, clock.asked) == (0, 0)
    assert "precision: bf16 (measured: a step in bf16 took 0.50 of float32's time)" in text, "what goes on is told"
    found = [stored(tmp_path / "runs" / f"seed-{i}") for i in range(3)]
    assert found[0]["precision"] == "bf16"
    assert found[1] == found[2] == found[0]


@pytest.mark.parametrize("other", ["backbone.size=64", "fit.device=auto"])
def test_a_seed_takes_no_choice_of_a_run_on_another_backbone_or_device(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: str
) -> None:
    clock.tells(0.5)
    later = load_config("digits", [*QUICK, "fit.precision=auto", "run.seed=1", other])
    killed(monkeypatch, lambda: run(later, tmp_path / "seed-1"))
    folders = [tmp_path / f"seed-{i}" for i in range(2)]
    first = load_config("digits", [*QUICK, "fit.precision=auto"])
    assert as_in_runs(first, folders) == first
    alike = load_config("digits", [*QUICK, "fit.precision=auto", other])
    assert as_in_runs(alike, folders)["fit"]["precision"] == "bf16"


def test_a_model_keeps_the_choice_of_its_first_learning(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, lamella: Run, photos: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    settings = [setting for setting in QUICK if setting.startswith(("backbone", "fit"))]
    command = ["learn", model, photos, *settings, "--method", "nearest-mean", "fit.precision=auto"]
    clock.tells(0.5)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        code, text, _ = lamella(*command)
    assert code == 130
    assert "precision: bf16 (measured: a step in bf16 took 0.50 of float32's time)" in text
    clock.tells(2.0)
    code, text, error = lamella(*command)
    assert (code, clock.asked) == (0, 0), error
    assert "precision: bf16 (measured: a step in bf16 took 0.50" in text
    assert "starts again" not in text
    assert load_manifest(model)["config"]["fit"]["precision"] == "bf16"
    for asked in ("fit.precision=auto", "fit.precision=bf16"):
        assert lamella("learn", model, photos, "--again", asked)[0] == 0
    code, _, error = lamella("learn", model, photos, "fit.precision=float32")
    assert (code, error.count("\n")) == (2, 1)
    assert "fit.precision is 'bf16', not 'float32'" in error
    assert (clock.asked, load_manifest(model)["config"]["fit"]["precision"]) == (0, "bf16")


def test_what_was_chosen_for_another_backbone_is_not_taken_over(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, lamella: Run, photos: Path, tmp_path: Path
) -> None:
    command = ["learn", tmp_path / "model", photos, "--method", "nearest-mean", "fit.precision=auto", "fit.device=cpu"]
    clock.tells(0.5)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "learn", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lamella(*command, *QUICK[:3])[0] == 130
    clock.tells(2.0)
    code, text, error = lamella(*command)
    assert code == 0, error
    assert clock.asked
    assert "precision: float32 (measured: a step in bf16 took 2.00" in text
    assert "starts again: its backbone, method or settings were others" in text


def test_a_model_that_was_made_with_a_given_precision_was_not_measured(
    lamella: Run, photos: Path, tmp_path: Path
) -> None:
    assert lamella("learn", tmp_path / "model", photos, "--method", "nearest-mean")[0] == 0
    code, _, error = lamella("learn", tmp_path / "model", photos, "fit.precision=auto")
    assert (code, error.count("\n")) == (2, 1)
    assert "fit.precision is 'float32', not 'auto'" in error


@pytest.mark.filterwarnings("always::lamella.learner.config.precision.SlowPrecision")
@pytest.mark.parametrize("there", [True, False])
def test_bf16_without_instructions_for_it_is_warned_about_and_names_auto(
    there: bool, lamella: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": there})
    tiny = ("--backbone", "test_vit", "backbone.weights=random", "backbone.size=32", "--no-train", "--device", "cpu")
    code, _, err = lamella("learn", tmp_path / "model", photos, *tiny, "fit.precision=bf16")
    told = "fit.precision = auto measures both, and would take float32 here"
    assert (code, told in err) == (0, not there)
    assert lamella("predict", tmp_path / "model", photos)[2].count(told) == (not there)
