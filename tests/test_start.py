"""What a new model starts with: a photo backbone unless another is named, and settings that suit it."""

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from conftest import Run
from test_learn import paint

from lamella import Learner
from lamella.learner.config import new_config
from lamella.learner.config.document import load_config
from lamella.learner.config.wanted import Wanted
from lamella.learner.store.versions import load_manifest

PHOTOS = new_config.PHOTOS  # read before the fixture of conftest.py replaces it


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, level in (("crow", 10), ("owl", 240)):
        for i in range(10):
            paint(tmp_path / "photos" / name / f"{i}.png", level)
    return tmp_path / "photos"


@pytest.fixture
def for_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_config, "PHOTOS", PHOTOS)


@pytest.mark.usefixtures("for_photos")
def test_without_any_option_it_is_the_configuration_of_photographs() -> None:
    config, expected = Wanted().config(), load_config("photos")
    assert config["backbone"]["name"] == "vit_tiny_patch16_224"
    assert [config[s] for s in ("backbone", "method", "augment")] == [
        expected[s] for s in ("backbone", "method", "augment")
    ]
    assert new_config.new_config() == config, "Learner.create() is no other model"


@pytest.mark.usefixtures("for_photos")
def test_the_bundled_backbone_has_settings_of_its_own() -> None:
    assert Wanted("fractal-vit-micro").config()["method"] == load_config("small-images")["method"]
    assert Learner.create(backbone="fractal-vit-micro").config == Wanted("fractal-vit-micro").config()


@pytest.mark.usefixtures("for_photos")
def test_what_photographs_start_with_learns_day_by_day_as_in_one_process(
    lamella: Run, photos: Path, tmp_path: Path
) -> None:
    for name, level in (("crane", 90), ("wren", 165)):
        for i in range(10):
            paint(tmp_path / "later" / name / f"{i}.png", level)
    short = ("method.min_steps=4", "method.epochs=1", "method.rank=4")
    settings = ("--config", "photos", "--backbone", "fractal-vit-micro", *short)
    assert lamella("learn", tmp_path / "model", photos, *settings)[0] == 0
    assert lamella("learn", tmp_path / "model", tmp_path / "later")[0] == 0
    stored = Learner.load(tmp_path / "model")
    once = Learner(Wanted("fractal-vit-micro", start="photos", settings=short).config())
    for folder in (photos, tmp_path / "later"):
        once.learn_from(folder)
    state = once.model.method.state_dict()
    assert stored.name == "seq-lora+mean_weights+align"
    found = stored.model.method.state_dict()
    assert found.keys() == state.keys()
    assert [name for name, value in found.items() if not torch.equal(value, state[name])] == []
    layer = "backbone.model.blocks.4.attn.qkv.weight"
    mean, newest = found[f"base.base.{layer}"][128:], found["base.trained.blocks/4/attn/qkv"]
    first = Learner.load(tmp_path / "model", version=1).model.method.state_dict()[f"base.base.{layer}"][128:]
    assert not torch.equal(first, newest), "the second day was trained"
    torch.testing.assert_close(mean, (first + newest) / 2)
    images = sorted(tmp_path.glob("*/*/*.png"))
    assert [guess.classes[0] for guess in stored.predict(images)] == [path.parent.name for path in images]


@pytest.mark.usefixtures("for_photos")
def test_where_no_weights_can_be_had_it_stops_and_names_the_ways_out(
    lamella: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    code, out, err = lamella("learn", tmp_path / "model", photos)
    assert (code, out, err.count("\n")) == (2, "", 1)
    folder = tmp_path / "data" / "vit_tiny_patch16_224"
    assert f"'vit_tiny_patch16_224' are not on this machine ('{folder}' does not exist), and timm's hub" in err
    assert "cannot be reached (no network)" in err
    assert "as backbone.weights=PATH" in err
    monkeypatch.delenv("LAMELLA_DATA")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    err = lamella("learn", tmp_path / "model", photos)[2]
    assert "($LAMELLA_DATA is not set), and could not be had from timm's hub (no network)" in err
    assert "--backbone NAME or FOLDER; --bundled takes the one of the package" in err
    assert not (tmp_path / "model").exists()


def test_the_backbone_is_named_first_and_the_bundled_one_says_what_it_is_for(
    lamella: Run, photos: Path, tmp_path: Path
) -> None:
    code, out, err = lamella("learn", tmp_path / "model", photos, "--bundled", "--no-train")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == (
        "new model: streaming-lda on fractal-vit-micro at 32 pixels, which is bundled: for digits and other small "
        "images, not for photographs"
    )
    assert "new model" not in lamella("learn", tmp_path / "model", photos, "--bundled", "--no-train")[1]


def test_a_configuration_can_be_named_and_is_held_to(lamella: Run, photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        '[scenario]\nsource = "nowhere"\n[backbone]\nname = "test_vit"\nweights = "random"\nsize = 32\n'
        '[method]\nname = "seq-lora"\nepochs = 2\nrank = 3\n'
    )
    model = tmp_path / "model"
    assert lamella("learn", model, photos, "--config", own, "method.epochs=1")[0] == 0
    stored = load_manifest(model)["config"]
    assert (stored["method"]["rank"], stored["method"]["epochs"], stored["backbone"]["size"]) == (3, 1, 32)
    assert "scenario" not in stored
    code, _, err = lamella("learn", model, photos, "--config", "small-images")
    assert (code, err.count("\n")) == (2, 1)
    assert "[backbone] is not that of the configuration 'small-images'" in err
    code, _, err = lamella("learn", tmp_path / "new", photos, "--config", "foto")
    assert (code, "did you mean 'photos'?" in err) == (2, True)


@pytest.mark.parametrize("two", [("--bundled", "--backbone", "test_vit"), ("--no-train", "--method", "olora")])
def test_two_words_for_one_thing_are_refused(lamella: Run, photos: Path, tmp_path: Path, two: tuple[str, ...]) -> None:
    code, _, err = lamella("learn", tmp_path / "model", photos, *two)
    assert (code, err.count("\n"), "leave one of them out" in err) == (2, 1, True)
