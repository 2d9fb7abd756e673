"""A model folder learns alike whoever asks: the command line, Python, or the server's process."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run

from lamella import Learner
from lamella.common.files import write_json
from lamella.common.locks import exclusive_lock
from lamella.data.sources.readable import load_readable
from lamella.learner.config.wanted import Wanted
from lamella.learner.folder import ModelFolder
from lamella.learner.store.versions import load_manifest
from lamella.serving.worker import teach
from lamella.training.checkpoints import Checkpoints

SETTINGS = (
    "backbone.weights=random", "backbone.size=32", "method.epochs=2", "method.batch_size=8", "fit.device=cpu",
    "fit.checkpoint_seconds=0",
)  # fmt: skip
WANTED = Wanted("test_vit", "seq-lora", None, SETTINGS)


class Killed(BaseException):
    """As a kill, it is caught by nothing."""


@pytest.fixture
def archives(tmp_path: Path) -> list[Path]:
    """Two data sets of two classes each, in one file each."""
    paths: list[Path] = []
    for k, names in enumerate((["red", "green"], ["blue", "grey"])):
        draws = np.random.default_rng(k)
        labels = np.repeat([0, 1], 10)
        x = (draws.integers(40, 216, (2, 1, 1, 3))[labels] + draws.integers(-30, 30, (20, 8, 8, 3))).astype(np.uint8)
        held = np.arange(20) % 5 == 0
        paths.append(tmp_path / f"{k}.npz")
        parts = {"x_train": x[~held], "y_train": labels[~held], "x_test": x[held], "y_test": labels[held]}
        np.savez(paths[-1], names=np.array(names), **parts)
    return paths


def by_command(model: Path, data: Path, lamella: Run) -> None:
    new = () if model.exists() and (model / "lamella.json").exists() else ("--backbone", "test_vit", *SETTINGS)
    method = ("--method", "seq-lora") if new else ()
    code, _, err = lamella("learn", model, data, *method, *new)
    if code:
        raise ValueError(err)


def in_python(model: Path, data: Path, lamella: Run) -> None:
    there = (model / "lamella.json").exists()
    learner = Learner.load(model) if there else Learner.of(ModelFolder(model).open(WANTED))
    learner.learn_from(data, folder=model)


WAYS = [by_command, in_python]


def killed_after(checkpoints: int, act: Callable[[], object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plain, count = Checkpoints.save, 0

        def save(self: Checkpoints, *given: Any) -> None:
            nonlocal count
            plain(self, *given)
            count += 1
            if count == checkpoints:
                raise Killed

        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(Killed):
            act()


def state(model: Path) -> str:
    return load_manifest(model)["state"]["sha256"]


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_learning_goes_on_to_the_same_bits(
    way: Any, archives: list[Path], tmp_path: Path, lamella: Run
) -> None:
    whole, model = tmp_path / "whole", tmp_path / "model"
    for data in archives:
        by_command(whole, data, lamella)
    by_command(model, archives[0], lamella)
    killed_after(2, lambda: way(model, archives[1], lamella))
    assert load_manifest(model)["version"] == 1
    assert list((model / "learning").glob("task-1/*.safetensors"))
    way(model, archives[1], lamella)
    assert state(model) == state(whole)
    assert not (model / "learning").exists()


def test_one_way_goes_on_where_another_was_killed(archives: list[Path], tmp_path: Path, lamella: Run) -> None:
    model, whole = tmp_path / "model", tmp_path / "whole"
    by_command(whole, archives[0], lamella)
    killed_after(2, lambda: in_python(model, archives[0], lamella))
    code, out, _ = lamella("learn", model, archives[0], "--backbone", "test_vit", "--method", "seq-lora", *SETTINGS)
    assert code == 0
    assert "resumes the interrupted learning of 0" in out
    assert state(model) == state(whole)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_another_process_changes_is_refused(
    way: Any, archives: list[Path], tmp_path: Path, lamella: Run
) -> None:
    model = tmp_path / "model"
    by_command(model, archives[0], lamella)
    with (
        exclusive_lock(model, ""),
        pytest.raises((ValueError, BlockingIOError), match=r"another process is changing '.*model'"),
    ):
        way(model, archives[1], lamella)
    assert load_manifest(model)["version"] == 1


def test_a_learner_is_not_stored_over_another_model(archives: list[Path], tmp_path: Path, lamella: Run) -> None:
    model = tmp_path / "model"
    by_command(model, archives[0], lamella)
    stranger = Learner.of(ModelFolder(tmp_path / "new").open(WANTED))
    with pytest.raises(ValueError, match="holds another model than this learner, or has learned more than it"):
        stranger.learn_from(archives[1], folder=model)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(ValueError, match="exists and is no model"):
        stranger.learn_from(archives[1], folder=tmp_path / "photos")
    assert stranger.tasks == []
    assert load_manifest(model)["version"] == 1


def rewritten(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the current version of a model says, as if another version of lamella had stored it."""
    path = model / "versions" / f"{load_manifest(model)['version']}.json"
    version, pointer = json.loads(path.read_text()), json.loads((model / "lamella.json").read_text())
    change(version)
    path.write_text(json.dumps(version))
    pointer["versions"][path.stem] = sha256(path.read_bytes()).hexdigest()
    write_json(model / "lamella.json", pointer)


def test_a_model_that_was_stored_before_an_option_was_there_learns_on_in_python(
    archives: list[Path], tmp_path: Path, lamella: Run
) -> None:
    model = tmp_path / "model"
    by_command(model, archives[0], lamella)
    rewritten(model, lambda version: version["config"]["method"].pop("accumulate"))
    in_python(model, archives[1], lamella)
    assert load_manifest(model)["version"] == 2


def test_the_last_task_is_forgotten_where_an_older_version_wrote_the_record_of_the_one_before(
    archives: list[Path], tmp_path: Path, lamella: Run
) -> None:
    model = tmp_path / "model"
    by_command(model, archives[0], lamella)
    rewritten(model, lambda version: [version["tasks"][0].pop(key) for key in ("directions", "waited")])
    by_command(model, archives[1], lamella)
    assert ModelFolder(model).forget("1").as_in == 1


def test_a_model_that_another_process_has_just_made_of_something_else_is_refused(
    archives: list[Path], tmp_path: Path, lamella: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain = tmp_path / "model", ModelFolder.held

    def held(self: ModelFolder) -> Any:
        monkeypatch.undo()
        by_command(model, archives[0], lamella)
        return plain(self)

    monkeypatch.setattr(ModelFolder, "held", held)
    other = Wanted("test_vit", "olora", None, SETTINGS)
    with (
        pytest.raises(ValueError, match=r"method\.name is 'seq-lora', not 'olora'"),
        ModelFolder(model).learning(lambda: load_readable(str(archives[1])), wanted=other),
    ):
        pass
    assert load_manifest(model)["version"] == 1


def test_without_a_folder_nothing_is_written(archives: list[Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    learner = Learner.of(ModelFolder(tmp_path / "model").open(WANTED))
    record = learner.learn_from(archives[0])
    assert (record.name, record.images, learner.tasks) == ("0", 16, [record])
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_model_alone_is_opened_where_none_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        ModelFolder(tmp_path / "model").open()
    assert not (tmp_path / "model").exists()


def sent_by_a_server(model: Path, data: Path, into: Path) -> Path:
    """What a server keeps of an archive that was sent: a folder of images and a note."""
    from PIL import Image

    with np.load(data) as arrays:
        x, y = (
            np.concatenate([arrays["x_train"], arrays["x_test"]]),
            np.concatenate([arrays["y_train"], arrays["y_test"]]),
        )
        for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
            place = into / "images" / str(arrays["names"][label]) / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
    note = {"name": "sent", "images": len(x), "ignored": [], "starts": 1, "tasks": len(load_manifest(model)["tasks"])}
    write_json(into / "sent.json", note)
    return into


def test_the_servers_process_goes_on_and_learns_nothing_twice(
    archives: list[Path], tmp_path: Path, lamella: Run
) -> None:
    model, whole = tmp_path / "model", tmp_path / "whole"
    by_command(model, archives[0], lamella)
    shutil.copytree(model, whole)
    sent = sent_by_a_server(model, archives[1], tmp_path / "sent")
    said: list[dict[str, Any]] = []
    killed_after(2, lambda: teach(model, sent, "sent", said.append))
    record = teach(model, sent, "sent", said.append)
    again = sent_by_a_server(whole, archives[1], tmp_path / "again")
    teach(whole, again, "sent", said.append)
    assert state(model) == state(whole)
    assert teach(model, sent, "sent", said.append) == record, "a kill before the archive was dropped"
    assert load_manifest(model)["version"] == 2


def test_a_learning_that_a_server_of_the_first_version_left_goes_on(
    archives: list[Path], tmp_path: Path, lamella: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    by_command(model, archives[0], lamella)
    sent = sent_by_a_server(model, archives[1], tmp_path / "sent")
    killed_after(3, lambda: teach(model, sent, "sent", lambda said: None))
    (sent / "learning" / "what.json").unlink()
    (sent / "learning" / "model.json").write_text(json.dumps(state(model)))  # all that it wrote down
    begun: list[str] = []
    load = Checkpoints.load

    def noted(self: Checkpoints, task: str, call: str) -> Any:
        found = load(self, task, call)
        begun.extend([call] if found else [])
        return found

    monkeypatch.setattr(Checkpoints, "load", noted)
    teach(model, sent, "sent", lambda said: None)
    assert begun == ["train"]
