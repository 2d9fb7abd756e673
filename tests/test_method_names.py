"""One spelling for a method with its parts and its base: what it means, where it is understood, what contradicts it."""

import json
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella import Learner
from lamella.experiments.bench.streams import short_method
from lamella.learner.config.document import (
    complete,
    load_config,
    method_name,
    readout_names,
    shipped_configs,
    to_toml,
    up_to_date,
)
from lamella.learner.config.method_names import with_parts
from lamella.learner.config.wanted import Wanted
from lamella.learner.store.versions import load_manifest
from lamella.methods import METHODS
from lamella.methods.parts import FIRST, PARTS

TINY = {"name": "test_vit", "weights": "random", "size": 32}
BASES = ("wa", "icarl", "replay")
ORDERS = [order for n in range(len(PARTS) + 1) for order in permutations(PARTS, n) if not {*FIRST} <= {*order}]
FEW = [order for order in ORDERS if len(order) <= 2 or list(order) == sorted(order)]
"""Every pair in both orders, and more parts in one; `ORDERS` are drawn from where one method is enough."""
PLAIN = [*(name for name in METHODS if name != "dlc"), *(f"dlc({base})" for base in BASES)]


def carried(parts: Iterable[str]) -> list[str]:
    """The parts in the order in which they are carried: those below all others, then these."""
    return sorted(parts, key=lambda part: FIRST.index(part) if part in FIRST else len(FIRST))


def completed(table: dict[str, Any]) -> dict[str, Any]:
    return complete({"backbone": {"name": "test_vit"}, "method": table})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of four small images."""
    from PIL import Image

    for name, level in (("dark", 20), ("bright", 230)):
        for i in range(4):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (level, level, 20 * i)).save(path)
    return tmp_path / "photos"


# what a name means ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", PLAIN)
def test_every_name_is_printed_as_it_is_carried_and_stored_as_name_and_tables(plain: str) -> None:
    for parts in FEW:
        config = completed({"name": "+".join([plain, *parts])})
        name = "+".join([plain, *carried(parts)])
        assert method_name(config) == name
        assert config["method"]["name"] == plain.partition("(")[0]
        assert [key for key in config["method"] if key in PARTS] == carried(parts)
        assert completed(config["method"])["method"] == config["method"], "what is stored is read as it is"
        assert list(completed(config["method"])["method"]) == list(config["method"]), "parts in their order, too"
        assert readout_names(config)[0] == name


@given(order=st.sampled_from(ORDERS), tables=st.lists(st.sampled_from(sorted(PARTS)), unique=True), true=st.booleans())
@settings(max_examples=60, deadline=None)
def test_parts_of_the_name_come_first_and_those_of_tables_follow_but_for_the_one_below_all(
    order: tuple[str, ...], tables: list[str], true: bool
) -> None:
    table = {"name": "+".join(["inflora", *order])} | {part: True if true else {} for part in tables}
    parts = carried([*order, *(part for part in tables if part not in order)])
    assert method_name(completed(table)) == "+".join(["inflora", *parts])


def test_the_running_mean_is_carried_below_alignment_wherever_it_is_written() -> None:
    for table in ({"name": "inflora+align+mean_weights"}, {"name": "inflora+align", "mean_weights": True}):
        assert method_name(completed(table)) == "inflora+mean_weights+align"


def test_merging_is_carried_below_alignment_wherever_it_is_written() -> None:
    for table in ({"name": "olora+align+merge"}, {"name": "olora+align", "merge": {"rule": "iso-c"}}):
        assert method_name(completed(table)) == "olora+merge+align"


def test_the_table_of_a_part_in_the_name_gives_its_settings() -> None:
    named = completed({"name": "inflora+align", "rank": 3, "align": {"ridge": 1.0}})
    assert named == completed({"name": "inflora", "rank": 3, "align": {"ridge": 1.0}})
    assert completed({"name": "dlc(wa)", "base": {"memory": 7}}) == completed(
        {"name": "dlc", "base": {"name": "wa", "memory": 7}}
    )
    assert completed({"name": "dlc(wa)", "base": {"name": "wa"}}) == completed({"name": "dlc(wa)"})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "inflora+algin"}, "has the unknown part 'algin'; did you mean 'align'"),
        ({"name": "inflroa+align"}, "unknown method 'inflroa'; did you mean 'inflora'"),
        ({"name": "inflora+align+align"}, "has the part 'align' twice; write it once"),
        ({"name": "inflora+"}, "is not a name; write a method"),
        ({"name": "+align"}, "is not a name; write a method"),
        ({"name": ""}, "is not a name; write a method"),
        ({"name": "dlc(wa"}, r"as in inflora\+align or dlc\(wa\)\+align"),
        ({"name": "dlc(wa+align)"}, r"as in inflora\+align or dlc\(wa\)\+align"),
        ({"name": "wa(replay)"}, r"wa learns on no other method; leave \(replay\) out"),
        ({"name": "nothing(wa)"}, "unknown method 'nothing'"),
        ({"name": "dlc(joint)"}, "method.base.name = 'joint' cannot be a base"),
        ({"name": "dlc", "base": {"name": "wa+align"}}, "should be a name alone; parts belong to the whole method"),
        ({"name": "dlc(wa)", "base": {"name": "icarl"}}, "are two bases; leave one of them out"),
        ({"name": "dlc(wa)", "base": 3}, "method.base = 3 should be a table"),
        ({"name": "inflora+align", "align": False}, "has the part 'align', and method.align = false takes it away"),
        ({"name": "inflora+align", "align": 3}, "method.align = 3 should be a table"),
        ({"name": 3}, "the name of a method is a text such as 'inflora', not 3"),
        ({"name": []}, "the name of a method is a text such as 'inflora'"),
    ],
)
def test_mistakes_in_a_name_are_one_clear_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        completed(table)
    assert "\n" not in str(caught.value)


# where it is understood -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inflora", "inflora+align", "inflora+calibrate+align", "seq-lora+calibrate"])
def test_every_door_understands_the_same_name(name: str, tmp_path: Path, lamella: Run, photos: Path) -> None:
    wanted = completed({"name": name, "epochs": 1, "batch_size": 4})["method"]
    path = tmp_path / "own.toml"
    path.write_text(
        f'[scenario]\nsource = "digits"\ntasks = 5\n[backbone]\nname = "test_vit"\n'
        f'[method]\nname = "{name}"\nepochs = 1\nbatch_size = 4\n'
    )
    assert load_config(path)["method"] == wanted
    assert tuple(load_config(path)["method"]) == tuple(wanted)
    path.write_text(path.read_text().replace(f'"{name}"', '"nearest-mean+calibrate"').replace("epochs = 1\n", ""))
    path.write_text(path.read_text().replace("batch_size = 4\n", ""))
    short = ["method.epochs=1", "method.batch_size=4"]
    assert load_config(path, [f"method.name={name}", *short])["method"] == wanted
    assert complete({"backbone": TINY, "method": short_method(name, batch=4)})["method"] == wanted
    learner = Learner.create(backbone=TINY, method={"name": name, "epochs": 1, "batch_size": 4})
    assert (learner.config["method"], learner.name) == (wanted, name)
    if name == "inflora":
        code, _, err = lamella(
            "learn",
            tmp_path / "model",
            photos,
            "--backbone",
            "test_vit",
            "backbone.weights=random",
            "backbone.size=32",
            "--method",
            name,
            *short,
        )
        assert (code, err) == (0, "")
        assert load_manifest(tmp_path / "model")["config"]["method"] == wanted


def test_without_a_name_inflora_carries_alignment_and_by_its_name_it_does_not() -> None:
    assert method_name(Wanted().config()) == "inflora+align"
    assert Learner.create(backbone=TINY).name == "inflora+align"
    assert Learner.create(backbone=TINY, method="inflora").name == "inflora"
    assert Learner.create(backbone=TINY, method={"name": "inflora", "rank": 2}).name == "inflora"
    assert method_name(load_config("digits")) == "inflora+align"
    assert method_name(load_config("digits", ["method.name=inflora"])) == "inflora"


def test_the_default_by_its_name_has_the_settings_of_the_default() -> None:
    assert Learner.create(backbone=TINY, method="inflora+align").config == Learner.create(backbone=TINY).config
    assert Wanted(method="inflora+align").config() == Wanted().config()
    assert Wanted(method="inflora-b5+align").config() == Wanted(settings=("method.blocks=5",)).config()
    both = ("method.name=inflora+align", "method.rank=3")
    assert Wanted(settings=both).config() == Wanted(settings=both[1:]).config()


def test_a_name_that_stands_for_settings_is_understood_at_every_door(tmp_path: Path) -> None:
    short = completed({"name": "inflora-b5+align", "rank": 2})["method"]
    assert short == completed({"name": "inflora+align", "rank": 2, "blocks": 5})["method"]
    assert load_config("digits", ["method.name=inflora-b5+align"])["method"]["blocks"] == 5
    assert Learner.create(backbone=TINY, method="inflora-b5").config["method"]["blocks"] == 5
    with pytest.raises(ValueError, match=r"'inflora-b5' means inflora with blocks = 5, and method.blocks is 3"):
        completed({"name": "inflora-b5", "blocks": 3})
    model = Learner.create(backbone=TINY, method="inflora").config
    with pytest.raises(ValueError, match=r"'inflora-b6'; .* allowed: .* inflora, inflora-b5, "):
        completed({"name": "inflora-b6"})
    with pytest.raises(ValueError, match=r"lacks 'name'; set method.name to one of .*inflora-b5"):
        completed({})
    with pytest.raises(ValueError, match=r"unknown method 'inflora-b5'; .* inflora, joint"):
        completed({"name": "dlc", "base": {"name": "inflora-b5"}})
    assert list(Wanted(method="inflora-b5").differences(model)) == ["method.blocks is None, not 5"]
    with pytest.raises(ValueError, match=r"'method.blcks'; did you mean 'blocks'"):
        list(Wanted(settings=("method.blcks=5",)).differences(model))
    with pytest.raises(ValueError, match=r"'augment.scal'; did you mean 'scale'"):
        list(Wanted(settings=("augment.scal=[0.5,1]",)).differences(model))


def test_a_new_model_is_what_its_name_says(tmp_path: Path, lamella: Run, photos: Path) -> None:
    tiny = ("--backbone", "test_vit", "backbone.weights=random", "backbone.size=32")
    quick = ("method.epochs=1", "method.rank=2")
    for i, (words, name) in enumerate(
        {
            (): "inflora+align",
            ("--method", "inflora"): "inflora",
            ("method.align=false",): "inflora",
            ("method.name=seq-lora",): "seq-lora",
            ("method.name=seq-lora+align",): "seq-lora+align",
            ("--method", "seq-lora", "method.align=true"): "seq-lora+align",
        }.items()
    ):
        model = tmp_path / f"model-{i}"
        assert lamella("learn", model, photos, *tiny, *quick, *words)[0] == 0, words
        assert method_name(load_manifest(model)["config"]) == name, words
        assert lamella("learn", model, photos, "--again", *words)[0] == 0, "the same words are no contradiction"
        code, _, err = lamella("learn", model, photos, "--method", "inflora+calibrate")
        assert (code, err.count("\n")) == (2, 1)
        assert f"method.name is '{name}', not 'inflora+calibrate'; leave it out" in err
    code, _, err = lamella("learn", tmp_path / "model-0", photos, "--method", "inflora")
    assert (code, "method.name is 'inflora+align', not 'inflora'" in err) == (2, True)
    code, _, err = lamella("learn", tmp_path / "new", photos, *tiny, "--method", "inflora+align", "method.align=false")
    assert (code, err.count("\n"), (tmp_path / "new").exists()) == (2, 1, False)
    assert "leave one of them out" in err


STARTS = ("photos", "small-images", "texts", "answers")
"""The configurations that a new model starts with."""


def test_the_command_shows_its_default(lamella: Run) -> None:
    shown = "".join(lamella("learn", "--help")[1].replace("│", "").split())  # long names are broken into lines
    photos, bundled, texts, answers = (method_name(load_config(start)) for start in STARTS)
    assert f"[default:({photos},bundled{bundled},fortexts{texts},foranswers{answers})]" in shown
    photos, bundled, texts, answers = STARTS
    assert f"[default:({photos},bundled{bundled},fortexts{texts},foranswers{answers})]" in shown


# names on the command line, over a file -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["digits", "cifar100-part-tuned", "inflora-cifar100-10", "mnist-5-scratch"])
@pytest.mark.parametrize("method", ["inflora", "seq-lora", "nearest-mean", "joint"])
def test_a_name_with_parts_is_the_name_and_its_parts(config: str, method: str) -> None:
    for parts in FEW:
        at_once = load_config(config, [f"method.name={'+'.join([method, *parts])}"])
        one_by_one = load_config(config, [f"method.name={method}", *(f"method.{part}=true" for part in parts)])
        assert method_name(at_once) == "+".join([method, *carried(parts)])
        assert at_once["run"].pop("overrides", None) is not None or at_once == load_config(config)
        one_by_one["run"].pop("overrides", None)
        own = [part for part in load_config(config)["method"] if part in PARTS]
        tables_last = carried(sorted(parts, key=lambda part: (part not in own, parts.index(part))))
        if carried(parts) == tables_last:  # else another order
            assert at_once == one_by_one


def test_a_name_replaces_the_parts_of_the_file_and_keeps_their_settings_where_it_has_them(tmp_path: Path) -> None:
    tuned = load_config("cifar100-part-tuned")
    assert load_config("cifar100-part-tuned", ["method.name=inflora+align"]) == tuned
    both = load_config("cifar100-part-tuned", ["method.name=inflora+calibrate+align"])
    assert method_name(both) == "inflora+calibrate+align"
    assert both["method"]["align"] == tuned["method"]["align"]
    without = load_config("cifar100-part-tuned", ["method.name=inflora"])
    assert without["run"]["dropped"] == ["method.align"]
    assert load_config("cifar100-part-tuned", ["method.name=inflora", "method.align.ridge=2"])["method"]["align"] == (
        tuned["method"]["align"] | {"ridge": 2}
    )
    path = tmp_path / "off.toml"
    path.write_text(to_toml(without).replace("[augment]", "[method.align]\nridge = 2.0\n\n[augment]"))
    assert method_name(load_config(path)) == "inflora+align"
    path.write_text(to_toml(without).replace('name = "inflora"', 'name = "inflora"\nalign = false'))
    assert method_name(load_config(path)) == "inflora"
    assert method_name(load_config(path, ["method.name=inflora+align"])) == "inflora+align"


def test_an_override_takes_away_what_the_files_name_gives_but_not_what_an_override_gives() -> None:
    assert method_name(load_config("digits", ["method.align=false"])) == "inflora"
    with pytest.raises(ValueError, match=r"'seq-lora\+align' has the part 'align', and method\.align = false"):
        load_config("digits", ["method.name=seq-lora+align", "method.align=false"])
    assert method_name(load_config("digits", ["method.name=seq-lora+align", "method.align="])) == "seq-lora+align"


def test_a_base_in_the_name_is_the_base() -> None:
    for base in BASES:
        named = load_config("mnist-5-scratch", [f"method.name=dlc({base})"])
        apart = load_config("mnist-5-scratch", [f"method.base.name={base}"])
        assert ("overrides" in named["run"]) == ("overrides" in apart["run"]) == (base != "wa"), "the file's base is wa"
        for config in (named, apart):
            config["run"].pop("overrides", None)
        assert named == apart
        assert method_name(load_config("digits", [f"method.name=dlc({base})"])) == f"dlc({base})"
    assert method_name(load_config("mnist-5-scratch", ["method.name=dlc"])) == "dlc(wa)", "the file's own base"


def test_what_was_stored_reads_as_it_did() -> None:
    old = {
        "backbone": TINY,
        "method": {"name": "inflora", "rank": 4, "calibrate": {"score": "gaussian"}, "align": {"ridge": 1.0}},
    }
    config = up_to_date(json.loads(json.dumps(old)))
    assert method_name(config) == "inflora+calibrate+align"
    assert (config["method"]["rank"], config["method"]["align"]["ridge"]) == (4, 1.0)
    assert up_to_date(config) == config
    for name in shipped_configs():
        assert with_parts(load_config(name)["method"]) == load_config(name)["method"]


# the deprecated word --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({}, "inflora"),
        ({"method": "inflora"}, "inflora"),
        ({"method": {"name": "inflora", "rank": 2}}, "inflora"),
        ({"method": "seq-lora"}, "seq-lora"),
    ],
)
def test_align_works_as_before_and_says_what_to_write(words: dict[str, Any], name: str) -> None:
    table = isinstance(words.get("method"), dict)
    for align, wanted in ((True, f"{name}+align"), (False, name)):
        instead = f'{{"name": "{wanted}", ...}}' if table else f'"{wanted}"'
        with pytest.warns(DeprecationWarning, match=f"align={align} is deprecated") as warned:
            learner = Learner.create(backbone=TINY, align=align, **words)
        assert learner.name == wanted
        assert str(warned[0].message).endswith(f"write method={instead}")
        assert Path(warned[0].filename) == Path(__file__), "where it was written"


def test_align_leaves_a_table_of_the_part_and_other_parts_as_they_are() -> None:
    with pytest.warns(DeprecationWarning, match=r'write method={"name": "inflora\+align\+calibrate", ...}'):
        learner = Learner.create(
            backbone=TINY, method={"name": "inflora", "align": {"ridge": 2.0}, "calibrate": {}}, align=True
        )
    assert learner.config["method"]["align"]["ridge"] == 2.0
    with pytest.raises(ValueError, match="leave one of them out"):
        Learner.create(backbone=TINY, method="seq-lora+align", align=False)
