"""Configuration: what is read, overridden, refused and built."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lamella.common.options import Option, check_table, options_of
from lamella.learner.config.document import (
    build_augmentation,
    build_backbone,
    build_method,
    build_scenario,
    complete,
    describe_config,
    load_config,
    method_name,
    readout_names,
    shipped_configs,
    to_toml,
)
from lamella.methods import METHODS

SMALL = """# A small configuration
[scenario]
source = "{source}"
sizes = [2, 1, 1]

[backbone]
name = "test_vit"
weights = "random"
size = 32

[method]
name = "inflora"
rank = 2
epochs = 1
horizon = "auto"

[method.align]
shrinkage = 0.2

[augment]
scale = [0.8, 1.0]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A configuration over 4 classes of 6 training and 2 test images."""
    rng = np.random.default_rng(0)
    labels = np.arange(4).repeat(8)
    pixels = rng.integers(0, 255, (32, 12, 12, 3), dtype=np.uint8)
    test = np.arange(32) % 8 >= 6
    archive = tmp_path / "small.npz"
    np.savez(archive, x_train=pixels[~test], y_train=labels[~test], x_test=pixels[test], y_test=labels[test])
    path = tmp_path / "small.toml"
    path.write_text(SMALL.format(source=archive.as_posix()))
    return path


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configurations_are_valid_and_documented(name: str) -> None:
    config = load_config(name)
    path = shipped_configs()[name]
    header = path.read_text().partition("\n[")[0]
    assert describe_config(path).endswith("."), "the first line stands alone in lists, so it is a whole sentence"
    assert "Target" in header
    assert "Protocol:" in header
    assert f"lamella run {name}" in header
    cut = config["scenario"]
    assert config["method"].get("horizon", cut.get("tasks")) == cut.get("tasks")
    assert config["run"]["evaluate_on"] == "test"


def test_every_published_setting_of_inflora_is_there() -> None:
    published = {name for name in shipped_configs() if name.startswith("inflora-")}
    b5 = {"inflora-b5-cifar100-10", "inflora-b5-imagenet-r-10"}
    assert published == b5 | {"inflora-cifar100-10", "inflora-domainnet-5"} | {
        f"inflora-imagenet-r-{n}" for n in (5, 10, 20)
    }
    for name in published:
        config = load_config(name)
        assert config["method"].get("blocks") == (5 if name in b5 else None)
        assert config["backbone"]["normalise"] == "none"  # the authors' code feeds raw pixels
        assert config["backbone"]["interpolation"] == "bilinear"  # as torchvision resizes where nothing is said
        assert config["backbone"]["name"] == "vit_base_patch16_224.augreg_in21k"
        assert method_name(config) == "inflora"


def test_every_stream_from_scratch_gives_the_numbers_of_base_and_dlc() -> None:
    scratch = {name for name in shipped_configs() if name.endswith("-scratch")}
    assert scratch == {"mnist-5-scratch", "tiny-imagenet32-5-scratch", "tiny-imagenet32-10-scratch"} | {
        "cifar100-10-scratch", "cifar100-50-5x10-scratch", "imagenet100-10-scratch"
    }  # fmt: skip
    for name in scratch:
        for base in ("wa", "replay", "icarl"):
            config = load_config(name, [f"method.base.name={base}"])
            assert readout_names(config) == [f"dlc({base})", base]
            assert "dropped" not in config["run"], "every key of the file means something to every base"
            assert config["backbone"]["weights"] == "random"
    assert sum(load_config("cifar100-50-5x10-scratch")["scenario"]["sizes"]) == 100


def test_the_resolved_configuration_is_complete_and_survives_toml(small: Path, tmp_path: Path) -> None:
    config = load_config(small)
    assert config["method"]["lr"] == 5e-4  # a default of the method
    assert config["method"]["horizon"] == 3  # "auto": the number of tasks
    assert config["method"]["align"]["shrinkage"] == 0.2
    assert config["augment"] == {"enabled": True, "scale": [0.8, 1.0], "ratio": [3 / 4, 4 / 3], "flip": True}
    assert json.loads(json.dumps(config)) == config
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml") == config


def test_the_order_of_keys_does_not_matter(small: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped.toml"
    swapped.write_text(small.read_text().replace("rank = 2\nepochs = 1", "epochs = 1\nrank = 2"))
    assert to_toml(load_config(swapped)) == to_toml(load_config(small))


def test_overrides_are_toml_or_bare_words(small: Path) -> None:
    overrides = [
        "method.rank=3",
        "method.optimizer=sgd",
        "method.sites=['query']",
        "augment.flip=false",
        "method.align.ridge=1",
    ]
    config = load_config(small, overrides)
    assert config["method"]["rank"] == 3
    assert config["method"]["optimizer"] == "sgd"
    assert config["method"]["sites"] == ["query"]
    assert config["augment"]["flip"] is False
    assert config["method"]["align"] == load_config(small)["method"]["align"] | {"ridge": 1}


def test_an_empty_override_returns_to_the_default(small: Path) -> None:
    assert load_config(small, ["method.rank="])["method"]["rank"] == 10
    assert "horizon" not in load_config(small, ["method.horizon="])["method"]


def test_parts_are_added_and_taken_away(small: Path) -> None:
    assert method_name(load_config(small)) == "inflora+align"
    assert method_name(load_config(small, ["method.align=false"])) == "inflora"
    assert load_config(small, ["method.align=true"]) == load_config(small)
    assert method_name(load_config("inflora-cifar100-10", ["method.align=true"])) == "inflora+align"


def test_another_method_leaves_out_what_it_does_not_know(small: Path) -> None:
    config = load_config(small, ["method.name=nearest-mean"])
    assert config["method"] == {"name": "nearest-mean"}
    assert config["run"]["dropped"] == ["method.rank", "method.epochs", "method.horizon", "method.align"]
    kept = load_config(small, ["method.name=seq-lora"])
    assert (kept["method"]["rank"], kept["method"]["epochs"]) == (2, 1)
    assert kept["run"]["dropped"] == ["method.horizon", "method.align"]
    carried = load_config(small, ["method.name=seq-lora", "method.align=true"])
    assert method_name(carried) == "seq-lora+align"
    named = load_config(small, ["method.name=seq-lora+align"])
    assert named["method"] == carried["method"], "both methods have the part: the file's settings hold"
    assert (named["method"]["align"]["shrinkage"], named["run"]["dropped"]) == (0.2, ["method.horizon"])
    with pytest.raises(ValueError, match=r"method\.rank"):  # asked for on the command line, it is a mistake
        load_config(small, ["method.name=nearest-mean", "method.rank=2"])


def test_an_option_that_means_something_else_in_the_other_method_is_not_carried() -> None:
    config = load_config("digits", ["method.name=lora-sub"])
    assert config["method"]["energy"] == 0.99, "its own default, not the share that inflora protects"
    assert "method.energy" in config["run"]["dropped"]
    assert load_config("digits", ["method.name=lora-sub", "method.energy=0.9"])["method"]["energy"] == 0.9
    assert load_config("digits", ["method.name=duallora"])["method"]["energy"] == 0.95
    assert "method.energy" not in load_config("digits", ["method.name=duallora"])["run"]["dropped"]


def test_a_file_with_a_method_that_is_not_known_here_may_be_run_with_another_one(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "strange.toml"
    text = small.read_text().replace('name = "inflora"', 'name = "nowhere"').replace('horizon = "auto"', "")
    path.write_text(text)
    assert load_config(path, ["method.name=inflora"])["method"]["rank"] == 2


SAME = {"blocks", "distill", "energy_of", "statistics_images"}
"""Options with defaults of their own that mean the same in every method but those that list them."""


def test_methods_whose_own_options_have_the_same_name_share_the_default_or_list_them() -> None:
    holders: dict[str, dict[str, object]] = {}
    for name, build in METHODS.items():
        for key, option in options_of(build, without={"seed"}).items():
            if option.recipe is None and key not in getattr(build, "own_meanings", ()):
                holders.setdefault(key, {})[name] = option.default
    differing = {key: own for key, own in holders.items() if len(set(map(repr, own.values()))) > 1}
    assert differing.keys() <= SAME, "which of them means something else? list it in its own_meanings"


def test_random_weights_are_another_draw_for_each_seed(small: Path) -> None:
    first, second = (build_backbone(load_config(small, [f"run.seed={seed}"])) for seed in (0, 1))
    assert first.weights_sha256 != second.weights_sha256
    assert load_config(small, ["run.seed=1", "backbone.seed=0"])["backbone"]["seed"] == 0
    assert load_config("digits", ["run.seed=1"])["backbone"]["seed"] == 0  # weights of a file


def test_another_base_leaves_out_what_it_does_not_know(small: Path, tmp_path: Path) -> None:
    text = small.read_text().replace('name = "inflora"', 'name = "dlc"').replace("rank = 2", "rank = 1")
    text = text.replace('horizon = "auto"', "").replace("[method.align]\nshrinkage = 0.2", "")
    path = tmp_path / "dlc.toml"
    path.write_text(text + '\n[method.base]\nname = "wa"\nstrength = 2.0\nmemory = 8\n')
    assert load_config(path)["method"]["base"]["strength"] == 2.0
    config = load_config(path, ["method.base.name=icarl"])
    assert config["run"]["dropped"] == ["method.base.strength"]
    assert config["method"]["base"]["memory"] == 8


def test_seeds_follow_the_run(small: Path) -> None:
    assert load_config(small, ["run.seed=7"])["scenario"]["seed"] == 7
    assert load_config(small, ["run.seed=7", "scenario.seed=1"])["scenario"]["seed"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.rnak=8", r"unknown key 'method\.rnak'; did you mean 'rank'"),
        ("method.router=arrow", r"'method\.router' is an option of .*color.*, not of inflora; leave it out"),
        ("method.align.shrnkage=0.1", r"unknown key 'method\.align\.shrnkage'; did you mean 'shrinkage'"),
        ("method.name=inflroa", r"unknown method 'inflroa'; did you mean 'inflora'"),
        ("methods.rank=8", r"unknown section 'methods' .* did you mean 'method'"),
        ("method.rank=ten", r"method\.rank = 'ten' should be a whole number"),
        ("method.rank=true", r"method\.rank = True should be a whole number"),
        ("method.rank.x=1", r"method\.rank is a value, not a table"),
        ("augment.scale=[1]", r"augment\.scale = \[1\] should be a list of 2"),
        ("augment.flip=1", r"augment\.flip = 1 should be true or false"),
        ("fit.precision=fp8", r"fit\.precision = 'fp8' should be 'float32' or 'bf16' or 'auto'"),
        ("scenario.kind=class-incr", r"unknown scenario\.kind 'class-incr'; did you mean 'class-incremental'"),
        ("scenario.source=", r"\[scenario\] lacks 'source'"),
        ("backbone.name=", r"\[backbone\] lacks 'name'"),
        ("method.name=", r"\[method\] lacks 'name'; set method\.name to one of inflora"),
        ("run.evaluate_on=validation", r"needs a validation part; set scenario\.validation"),
        ("method.rank", r"'method\.rank' is not an override; write section\.key=value"),
        ("rank=8", r"'rank=8' is not an override"),
        (
            "scenario.kind=domain-incremental",
            r"'scenario\.sizes' belongs to .*class-incremental.*with scenario\.sizes=",
        ),
        ("method.align=3", r"method\.align = 3 should be a table"),
    ],
)
def test_mistakes_are_one_clear_line(small: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config(small, [override])
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration 'digts'.*did you mean 'digits'"):
        load_config("digts")
    broken = tmp_path / "broken.toml"
    broken.write_text("[method\n")
    with pytest.raises(ValueError, match=r"broken\.toml' is not a TOML file"):
        load_config(broken)
    broken.write_text("[metod]\n")
    with pytest.raises(ValueError, match=r"unknown section \[metod\]; did you mean 'method'"):
        load_config(broken)
    broken.write_text("method = 'inflora'\n")
    with pytest.raises(ValueError, match=r"'method' should be a section"):
        load_config(broken)


def test_auto_horizon_of_a_domain_stream_counts_its_domains() -> None:
    domains = ["scenario.source=photos", "scenario.kind=domain-incremental", "scenario.tasks="]
    assert load_config("digits", [*domains, 'scenario.domains=["a", "b", "c"]'])["method"]["horizon"] == 3
    with pytest.raises(ValueError, match=r"number of domains; set method.horizon to a number"):
        load_config("digits", domains)


def test_an_unknown_horizon_is_refused() -> None:
    table = {"backbone": {"name": "test_vit"}, "method": {"name": "inflora", "horizon": "auto"}}
    with pytest.raises(ValueError, match=r"horizon = 'auto' needs the number of tasks"):
        complete(table)


def test_without_a_scenario_everything_else_is_completed() -> None:
    config = complete({"backbone": {"name": "test_vit"}, "method": {"name": "seq-lora"}})
    assert "scenario" not in config
    assert config["run"]["seed"] == 0
    assert build_augmentation(config) is None


def test_what_is_built(small: Path) -> None:
    config = load_config(small, ["run.seed=3", "method.blocks=1"])
    scenario = build_scenario(config)
    assert [len(scenario[i].classes) for i in range(len(scenario))] == [2, 1, 1]
    backbone = build_backbone(config)
    assert backbone.transform.size == 32
    method = build_method(config, backbone)
    assert type(method).__name__ == "Aligned"
    assert (method.shrinkage, method.base.lora.rank, method.base.seed) == (0.2, 2, 3)  # pyright: ignore[reportAttributeAccessIssue]
    augmentation = build_augmentation(config)
    assert augmentation is not None
    assert augmentation.scale == (0.8, 1.0)  # a tuple, as annotated, from TOML's list
    assert build_augmentation(load_config(small, ["augment.enabled=false"])) is None


def test_source_options_reach_the_loader() -> None:
    shares = []
    for fraction in (0.2, 0.5):
        config = load_config("digits", [f"scenario.test_fraction={fraction}"])
        scenario = build_scenario(config)
        shares.append(sum(len(scenario.test(i)) for i in range(len(scenario))) / 1797)
    assert shares == pytest.approx([0.2, 0.5], abs=0.01)


def test_options_are_the_signature() -> None:
    def build(x: int, *, rank: int, names: tuple[str, ...] = (), share: float | None = None) -> None: ...

    options = options_of(build)
    assert options["rank"] == Option(int)
    assert set(options) == {"rank", "names", "share"}
    check_table("t", {"rank": 1, "names": ["a"], "share": 1}, options)  # a whole number is a number
    with pytest.raises(ValueError, match=r"\[t\] lacks 'rank' \(a whole number\)"):
        check_table("t", {}, options)
    with pytest.raises(ValueError, match=r"t\.names = \['a', 1\] should be a list, each text"):
        check_table("t", {"rank": 1, "names": ["a", 1]}, options)


def test_shipped_files_are_plain_toml() -> None:
    for path in shipped_configs().values():
        assert set(tomllib.loads(path.read_text())) <= {"scenario", "backbone", "method", "augment", "fit", "run"}
