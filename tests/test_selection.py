"""`run.selection` says how a configuration was chosen, and is taken back where an override makes that untrue."""

import json
import tomllib
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

from lamella import Learner
from lamella.experiments.report import load_results, write_report
from lamella.experiments.report.summary import summarise
from lamella.experiments.run import run
from lamella.learner.config.document import load_config, method_name, same_settings, shipped_configs, to_toml

QUICK = ["backbone.weights=random", "method.name=nearest-mean", "fit.device=cpu"]
CHANGED = QUICK[:2]
SECTIONS = ("scenario", "backbone", "method", "augment", "fit")
MACHINE = ["fit.device=cpu", "fit.compile=true", "fit.checkpoint_seconds=5"]

OTHERS: dict[str, Any] = {
    "digits": [
        "scenario.tasks=2",
        "scenario.seed=3",
        "backbone.weights=random",
        "backbone.seed=2",
        "method.rank=8",
        "method.lr=",
        "method.name=inflora",
        "method.calibrate=true",
        "method.align.ridge=1",
        "augment.flip=true",
        "fit.precision=bf16",
    ],
    "mnist-5-scratch": [
        "method.base.name=icarl",
        "method.name=dlc(replay)",
        "method.base.memory=9",
        "augment.enabled=true",
    ],
}


def selection(config: dict[str, Any]) -> str:
    return config["run"]["selection"]


def leaves(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every key with its value, by dotted name."""
    found = [leaves(v, f"{prefix}{k}.") if isinstance(v, dict) else [(f"{prefix}{k}", v)] for k, v in table.items()]
    return list(chain.from_iterable(found))


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_an_override_that_says_what_the_file_says_changes_nothing(name: str) -> None:
    config = load_config(name)
    own = [(key, value) for key, value in leaves({k: config[k] for k in SECTIONS}) if key != "method.name"]
    texts = [f"{key}={json.dumps(value)}" for key, value in own] + [f"method.name={method_name(config)}"]
    assert load_config(name, texts) == config
    for text in texts:  # a value in [augment] switches the table on
        if config["augment"]["enabled"] or not text.startswith("augment.") or text == "augment.enabled=false":
            assert load_config(name, [text]) == config, text


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_configuration_says_how_it_was_chosen(name: str) -> None:
    assert selection(load_config(name)) not in ("not stated", "")


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in OTHERS.items() for text in texts])
def test_an_override_that_changes_a_value_takes_the_selection_back_and_is_listed(name: str, text: str) -> None:
    config = load_config(name, [text])
    assert selection(load_config(name)) != "not stated"
    assert (selection(config), config["run"]["overrides"]) == ("not stated", [text])
    said = load_config(name, [text, "run.selection=tried on validation"])
    assert (selection(said), said["run"]["overrides"]) == ("tried on validation", [text])


def test_the_selection_stands_exactly_where_nothing_it_speaks_of_has_changed() -> None:
    pool = [
        "method.rank=4",
        "method.rank=8",
        "scenario.tasks=5",
        "method.name=inflora+align",
        "method.align=true",
        "fit.precision=float32",
        "augment.enabled=false",
        "backbone.crop=0.5",
        "run.seed=3",
        "run.evaluate_on=test",
        "augment.flip=true",
        *MACHINE,
    ]
    changing = {"method.rank=8", "backbone.crop=0.5"}
    for overrides in chain.from_iterable(combinations(pool, n) for n in (0, 1, 2, len(pool))):
        config = load_config("digits", overrides)
        seed = [text for text in overrides if text == "run.seed=3"]
        switched = "augment.flip=true" in overrides and "augment.enabled=false" not in overrides
        last = [text for text in overrides if text in changing or (switched and text == "augment.flip=true")]
        assert config["run"].get("overrides", []) == last, overrides
        assert (selection(config) == selection(load_config("digits"))) == (not last), overrides
        machine = {key: config["fit"][key] for key in ("device", "compile", "checkpoint_seconds")}
        plain = load_config("digits", seed)
        same = {**config, "fit": config["fit"] | machine} == {**plain, "fit": plain["fit"] | machine}
        assert same == (not last), overrides


@pytest.mark.parametrize("text", [*MACHINE, "run.seed=7"])
def test_settings_of_the_machine_and_the_seed_leave_it_as_it_stands(text: str) -> None:
    config = load_config("digits", [text])
    assert selection(config) == selection(load_config("digits"))
    assert "overrides" not in config["run"]


def test_of_two_overrides_of_a_value_the_last_one_counts() -> None:
    assert load_config("digits", ["method.rank=8", "method.rank=4"]) == load_config("digits")
    assert load_config("digits", ["method.rank=8", "method.rank=2"])["run"]["overrides"] == ["method.rank=2"]


def test_overrides_that_make_a_file_whole_count_too(tmp_path: Path) -> None:
    path = tmp_path / "part.toml"
    path.write_text('[scenario]\nsource = "digits"\ntasks = 5\n[run]\nselection = "by hand"\n')
    config = load_config(path, ["backbone.name=test_vit", "method.name=nearest-mean", "fit.device=cpu"])
    assert config["run"]["overrides"] == ["backbone.name=test_vit", "method.name=nearest-mean"]
    assert selection(config) == "not stated"
    measured = load_config("digits", ["run.evaluate_on=validation", "scenario.validation=0.2"])
    assert measured["run"]["overrides"] == ["scenario.validation=0.2"]


def test_what_a_run_wrote_down_is_read_as_it_is_and_further_overrides_are_added(tmp_path: Path) -> None:
    config = load_config("digits", ["method.rank=8"])
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "config.toml") == config
    further = load_config(tmp_path / "config.toml", ["method.rank=8", "method.epochs=1"])
    assert further["run"]["overrides"] == ["method.rank=8", "method.epochs=1"]


# stored configurations ------------------------------------------------------------------------------------------------


def as_older(config: dict[str, Any]) -> dict[str, Any]:
    """What a version without `run.overrides` stored for the same command."""
    older = {key: value for key, value in config["run"].items() if key != "overrides"}
    return {**config, "run": older | {"selection": selection(load_config("digits"))}}


def test_an_older_versions_configuration_is_the_same_where_only_the_claim_differs() -> None:
    new = load_config("digits", QUICK)
    assert same_settings(as_older(new), new)
    assert not same_settings(as_older(new), load_config("digits", [*QUICK, "scenario.tasks=2"]))
    assert not same_settings(as_older(load_config("digits")), load_config("digits", QUICK))
    plain = load_config("digits")
    assert same_settings(plain, plain)
    assert not same_settings(plain, load_config("digits", ["run.selection=other"]))
    assert not same_settings({}, new)


def test_a_run_of_an_older_version_goes_on_and_its_result_claims_nothing(tmp_path: Path) -> None:
    config = load_config("digits", QUICK)
    out = run(config, tmp_path / "run", quiet=True)
    result = json.loads((out / "results.json").read_text())
    assert result["selection"] == "not stated"
    assert result["config"]["run"]["overrides"] == CHANGED
    for file in out.glob("results*.json"):
        file.unlink()
    (out / "config.toml").write_text(to_toml(as_older(config)))
    learner = Learner.load(out / "model")
    learner.model.config = as_older(learner.config)
    learner.save(out / "model", keep=1)
    run(config, out, resume=True, quiet=True)
    again = json.loads((out / "results.json").read_text())
    assert (again["selection"], again["config"], again["matrix"]) == ("not stated", result["config"], result["matrix"])
    assert tomllib.loads((out / "config.toml").read_text()) == again["config"]


def test_seeds_share_a_row_and_the_page_of_a_report_lists_the_overrides(lamella: Run, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    changed = ["method.name=nearest-mean", "scenario.tasks=2"]
    assert lamella("run", "digits", *changed, *MACHINE[:1], "--seeds", 2, "--out", out, "--quiet")[0] == 0
    older = tmp_path / "older"
    for seed in (0, 1):
        content = json.loads((out / f"seed-{seed}" / "results.json").read_text())
        assert content["config"]["run"]["overrides"] == changed
        run_table = as_older(content["config"])["run"]
        older.mkdir(exist_ok=True)
        told = {"seed": seed + 2, "selection": run_table["selection"], "config": content["config"] | {"run": run_table}}
        (older / f"results-{seed}.json").write_text(json.dumps(content | told))
    results = load_results([out, older])
    assert [row.seeds for row in summarise(results, across_splits=True).rows] == [(0, 1, 2, 3)]
    assert {result.overrides for result in load_results([older])} == {()}
    page = write_report([out], html=tmp_path / "page.html").read_text()
    assert f"<dt>Overrides</dt><dd><code>{' '.join(changed)}</code></dd>" in page
    assert "<dt>Selection</dt><dd>not stated</dd>" in page
