"""Folders of strangers: what `trusted=False` and `--untrusted` refuse, each by one line, and what they still load."""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
from colours import NEW, TOKEN, photos
from conftest import Run
from fastapi.testclient import TestClient
from safetensors.torch import save_file
from test_own_methods import OWN, forget_what_was_named

from lamella import Learner
from lamella.backbones import load_backbone
from lamella.backbones.hub import without_hub
from lamella.learner.store.versions import load_manifest
from lamella.serving.app import create_app
from lamella.serving.jobs import Jobs
from lamella.serving.model_watcher import ModelWatcher

WAY_OUT = "; if you trust it after all, leave out --untrusted (trusted=False)"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects every question to the hub and every download; each one fails."""
    asked: list[str] = []

    def ask(*arguments: object, **options: object) -> None:
        asked.append(str(arguments))
        raise OSError("no network in this test")

    for name in ("get_hf_file_metadata", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, ask)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", ask)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", ask)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.delenv("LAMELLA_DATA", raising=False)
    return asked


def rewritten(model: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A folder whose maker has changed what stands in its version, with the right checksum."""
    pointer = json.loads((model / "lamella.json").read_text())
    version = model / "versions" / "1.json"
    manifest = json.loads(version.read_text())
    change(manifest)
    version.write_text(json.dumps(manifest))
    pointer["versions"]["1"] = sha256(version.read_bytes()).hexdigest()
    (model / "lamella.json").write_text(json.dumps(pointer))
    return model


def backbone(**table: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["config"]["backbone"].update(table)


def refusal(model: Path, what: str) -> str:
    """A pattern for the whole line."""
    return f"^{re.escape(line(model, what))}$"


def line(model: Path, what: str) -> str:
    return f"'{model}' is not trusted, so no file that it names elsewhere is read or run, but {what}{WAY_OUT}"


def test_what_needs_nothing_from_outside_is_loaded(model: Path, no_network: list[str]) -> None:
    learner = Learner.load(model, trusted=False)
    assert list(learner.class_names.values()) == ["bright", "dark"]
    assert not learner.model.trusted
    assert Learner.load(model).model.trusted
    assert no_network == []


@pytest.mark.parametrize("place", ["/home/ada/secret.safetensors", "../secret.safetensors", "versions"])
def test_weights_at_a_path_are_not_read(model: Path, place: str) -> None:
    rewritten(model, backbone(weights=place))
    with pytest.raises(ValueError, match=refusal(model, f"its weights '{place}' are no file of the folder")):
        Learner.load(model, trusted=False)


def test_weights_elsewhere_are_read_where_the_folder_is_trusted(model: Path, tmp_path: Path) -> None:
    """The check of the test above: without the option the very same folder is loaded from that file."""
    weights = load_backbone("test_vit", weights="random", size=32).model.state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "mine.safetensors")
    rewritten(model, backbone(weights=str(tmp_path / "mine.safetensors")))
    assert Learner.load(model).backbone.weights_sha256
    with pytest.raises(ValueError, match="are no file of the folder"):
        Learner.load(model, trusted=False)


def test_an_adapter_elsewhere_is_not_read(model: Path) -> None:
    rewritten(model, backbone(adapter="/home/ada/lora"))
    with pytest.raises(ValueError, match=refusal(model, "its adapter '/home/ada/lora' is no file of the folder")):
        Learner.load(model, trusted=False)


@pytest.mark.parametrize("name", ["test_vit.x/../../ada", "test_vit.x\\..\\..\\ada"])
def test_the_name_of_a_backbone_is_no_path(model: Path, name: str) -> None:
    rewritten(model, backbone(name=name, weights="pretrained"))
    with pytest.raises(ValueError, match=refusal(model, f"the name '{name}' of its backbone is a path")):
        Learner.load(model, trusted=False)


def test_a_copy_of_weights_in_the_folder_is_loaded(tmp_path: Path, no_network: list[str]) -> None:
    """A backbone from files of its maker: the copy counts, and the files need not be there any more."""
    weights = load_backbone("test_vit", weights="random", size=32).model.state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "mine.safetensors")
    table = {"name": "test_vit", "weights": str(tmp_path / "mine.safetensors"), "size": 32}
    learner = Learner.create(backbone=table, method="nearest-mean", fit={"device": "cpu"})
    learner.learn_from(photos(tmp_path / "photos", NEW), folder=tmp_path / "model")
    (tmp_path / "mine.safetensors").unlink()
    loaded = Learner.load(tmp_path / "model", trusted=False)
    assert loaded.backbone.weights_sha256 == learner.backbone.weights_sha256
    assert no_network == []


def test_weights_of_the_hub_are_not_fetched(model: Path, no_network: list[str]) -> None:
    rewritten(model, backbone(weights="pretrained", size=None))
    with pytest.raises(FileNotFoundError) as refused:
        Learner.load(model, trusted=False)
    assert no_network == [], "nobody was asked"
    assert str(refused.value) == (
        "the weights of 'test_vit' are not on this machine ($LAMELLA_DATA is not set), and a model that is not trusted "
        "has nothing fetched from timm's hub; put them into a folder 'test_vit' of the folder that $LAMELLA_DATA "
        "names, or give their path as backbone.weights=PATH"
    )
    with pytest.raises(FileNotFoundError, match="timm's hub cannot be reached"):
        Learner.load(model)
    assert len(no_network) == 1, "without the option the hub is asked"


def test_weights_that_the_hub_gave_before_are_loaded_without_asking_it(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = timm.create_model("test_vit", pretrained=False)
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    cached = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repo, file: cached if file == "model.safetensors" else None
    )
    with without_hub():
        found = load_backbone("test_vit").model.state_dict()
    assert all(found[key].equal(value) for key, value in own.state_dict().items() if not key.startswith("head."))
    assert no_network == []


def test_weights_below_the_data_folder_are_the_users_own(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = timm.create_model("test_vit", pretrained=False)
    (tmp_path / "test_vit").mkdir()
    save_file(own.state_dict(), tmp_path / "test_vit" / "model.safetensors")
    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path))
    learner = Learner.create(backbone="test_vit", method="nearest-mean", fit={"device": "cpu"})
    learner.learn_from(photos(tmp_path / "photos", NEW), folder=tmp_path / "model")
    assert Learner.load(tmp_path / "model", trusted=False).backbone.weights_sha256 == learner.backbone.weights_sha256
    assert no_network == []


@pytest.mark.parametrize("place", [("method",), ("method", "base")])
def test_a_python_file_is_not_run_even_where_it_is_listed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[str, ...]
) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(OWN)
    forget_what_was_named()
    monkeypatch.setenv("LAMELLA_METHODS", str(file))
    name = f"{file}:Means"

    def change(manifest: dict[str, Any]) -> None:
        table = manifest["config"]
        for key in place:
            table = table.setdefault(key, {})
        table["name"] = name

    rewritten(model, change)
    with pytest.raises(
        ValueError, match=refusal(model, f"its method '{name}' is a class of a Python file, which would run")
    ):
        Learner.load(model, trusted=False)
    assert not file.with_suffix(".ran").exists()


COMMANDS = {
    "predict": ("predict", "{model}", "{image}"),
    "evaluate": ("evaluate", "{model}", "{photos}"),
    "export": ("export", "{model}", "--format", "adapters", "--out", "{out}"),
    "serve": ("serve", "{model}", "--port", "0"),
    "learn": ("learn", "{model}", "{photos}"),
    "forget": ("forget", "{model}", "photos"),
    "classes": ("classes", "{model}", "rename", "dark", "black"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_that_loads_a_model_refuses_in_one_line(
    lamella: Run, model: Path, tmp_path: Path, command: str
) -> None:
    rewritten(model, backbone(weights="/home/ada/secret.safetensors"))
    new = photos(tmp_path / "new", NEW)
    places = {"model": model, "photos": new, "image": new / NEW[0] / "0.png", "out": tmp_path / "out"}
    before = (model / "lamella.json").read_bytes()
    code, out, err = lamella(*(part.format(**places) for part in COMMANDS[command]), "--untrusted")
    assert (code, out) == (2, "")
    words = line(model, "its weights '/home/ada/secret.safetensors' are no file of the folder")
    assert err.endswith(f"{words}\n")
    assert err.count("\n") == 1
    assert (model / "lamella.json").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_cannot_be_distrusted(lamella: Run, tmp_path: Path) -> None:
    code, _, err = lamella("learn", tmp_path / "model", photos(tmp_path / "new", NEW), "--bundled", "--untrusted")
    assert (code, err.count("\n")) == (2, 1)
    assert f"'{tmp_path / 'model'}' holds no model yet, so there is none to distrust; leave out --untrusted" in err


def test_an_untrusted_model_learns_and_predicts(
    lamella: Run, model: Path, tmp_path: Path, no_network: list[str]
) -> None:
    new = photos(tmp_path / "new", NEW)
    code, out, err = lamella("learn", model, new, "--untrusted")
    assert (code, err) == (0, "")
    assert "learned 2 classes" in out
    code, out, _ = lamella("predict", model, new / NEW[0] / "0.png", "--untrusted")
    assert (code, f": {NEW[0]} " in out) == (0, True)
    assert no_network == []


def test_a_server_does_not_follow_to_a_version_that_names_files_elsewhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    made = Jobs.__init__
    monkeypatch.setattr(Jobs, "__init__", lambda self, *a, **o: (told.append(o["trusted"]), made(self, *a, **o))[0])
    with TestClient(create_app(model, token=TOKEN, trusted=False)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        assert isinstance(service.follower, ModelWatcher)
        rewritten(model, backbone(weights="/home/ada/secret.safetensors"))
        with pytest.raises(ValueError, match="its weights '/home/ada/secret"):
            service.follower.catch_up()
        assert client.get("/health").json()["version"] == 1
    assert told == [False]
    assert load_manifest(model)["version"] == 1
