"""Versions of a model on disk: whole at every moment, none lost, damage told."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lamella.common import files
from lamella.learner.folder import ModelFolder
from lamella.learner.store import versions as store
from lamella.learner.store.versions import (
    drop_versions,
    history,
    load_manifest,
    load_model,
    make_again,
    roll_back,
    save_model,
)


def state(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((4,), value)}


def save(folder: Path, value: float, keep: int | None = None) -> None:
    save_model(folder, state(value), described(int(value)), what=f"learned {value:g}", keep=keep)


RECORD: dict[str, Any] = {"images": 1, "seconds": {"total": 1.0}, "trainable_parameters": 0}


def described(tasks: int) -> dict[str, Any]:
    """What a version tells of a model of so many tasks."""
    return {
        "config": {"backbone": {"name": "b"}, "method": {"name": "m"}, "fit": {}, "run": {"seed": 0}},
        "weights_sha256": "0",
        "class_names": [[i, f"class {i}"] for i in range(tasks)],
        "tasks": [{"name": f"task {i}", "classes": [i], **RECORD} for i in range(tasks)],
        "notes": {},
    }


def value(folder: Path, version: int | None = None) -> float:
    return float(load_model(folder, version)[0]["weight"][0])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for i in (1, 2, 3):
        save(tmp_path / "model", i)
    return tmp_path / "model"


def test_every_version_stays_and_the_newest_is_the_model(model: Path) -> None:
    assert [v.number for v in history(model)] == [1, 2, 3]
    assert [v.current for v in history(model)] == [False, False, True]
    assert [v.what for v in history(model)] == ["learned 1", "learned 2", "learned 3"]
    assert history(model)[1].tasks == ("task 0", "task 1")
    assert value(model) == 3
    assert [value(model, n) for n in (1, 2, 3)] == [1, 2, 3]


def test_rolling_back_loses_nothing_and_what_comes_next_has_a_number_of_its_own(model: Path) -> None:
    roll_back(model, 1)
    assert value(model) == 1
    assert [v.current for v in history(model)] == [True, False, False]
    save(model, 5)
    assert [v.number for v in history(model)] == [1, 2, 3, 4]
    assert (value(model), value(model, 3)) == (5, 3)
    roll_back(model, 3)
    assert value(model) == 3


def test_versions_of_equal_tensors_share_one_file(model: Path) -> None:
    save(model, 3)
    assert len(history(model)) == 4
    assert len(list(model.glob("state-*"))) == 3


def test_only_the_newest_stay_where_that_is_asked_for(model: Path) -> None:
    save(model, 4, keep=2)
    assert [v.number for v in history(model)] == [3, 4]
    assert len(list(model.glob("state-*"))) == len(list((model / "versions").iterdir())) == 2
    save(model, 5, keep=1)
    assert [v.number for v in history(model)] == [5]
    save(model, 6, keep=9)
    assert [v.number for v in history(model)] == [5, 6]
    with pytest.raises(ValueError, match="keep 0 would leave no version; give 1 or more"):
        save(model, 7, keep=0)


@pytest.mark.parametrize("step", range(3))
def test_a_crash_at_any_write_leaves_the_model_as_it_was(
    model: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The writes are state, version and pointer; each in turn finds the disk full."""
    writes: list[Path] = []
    write = files.write_atomic

    def full(path: Path, content: bytes) -> None:
        if len(writes) == step:
            raise OSError(28, "No space left on device")
        writes.append(path)
        write(path, content)

    monkeypatch.setattr(store, "write_atomic", full)
    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        save(model, 4)
    monkeypatch.undo()
    assert value(model) == 3
    assert [v.number for v in history(model)] == [1, 2, 3]
    save(model, 5)
    assert [v.number for v in history(model)] == [1, 2, 3, 4]
    assert value(model) == 5
    assert len(list(model.glob("state-*"))) == 4, "what the crash left is swept up"


def change(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"~" + content[-2:])


def test_tampering_with_any_file_is_told(model: Path) -> None:
    change(next(iter(model.glob(f"{load_manifest(model)['state']['file']}"))))
    with pytest.raises(ValueError, match="damaged: its checksum is not the recorded one"):
        load_model(model)
    assert value(model, 2) == 2
    with pytest.raises(ValueError, match="damaged"):
        roll_back(model, 3)
    change(model / "versions" / "2.json")
    with pytest.raises(ValueError, match=r"2.json' is damaged"):
        load_model(model, 2)


@pytest.mark.parametrize("content", [b"", b"~"], ids=["cut off", "changed"])
def test_what_is_learned_again_replaces_a_damaged_file(model: Path, content: bytes) -> None:
    """The same tensors have a file of the same name, which must not be taken for theirs where it is damaged."""
    file = model / load_manifest(model)["state"]["file"]
    file.write_bytes(content * file.stat().st_size)
    save(model, 3)
    assert [value(model, n) for n in (3, 4)] == [3, 3]


def test_learning_goes_on_beside_a_damaged_version_whose_state_is_kept(model: Path) -> None:
    damaged = (model / "versions" / "1.json").read_bytes()
    (model / "versions" / "1.json").unlink()
    save(model, 4)
    assert value(model) == 4
    with pytest.raises(FileNotFoundError, match="version 1 is lost; restore the file from a copy"):
        load_model(model, 1)
    (model / "versions" / "1.json").write_bytes(damaged)
    assert value(model, 1) == 1


@pytest.mark.parametrize(
    ("pointer", "text"),
    [
        ({"lamella": 3}, "has format 3, but this lamella reads formats up to 2; upgrade lamella"),
        ({"lamella": 1, "state": {}}, "from before the first release of lamella; learn the model again"),
        ({"lamella": 2}, "was not written by lamella"),
        ({"lamella": 2, "current": 4, "versions": {"1": "0"}}, "was not written by lamella"),
        ([1], "was not written by lamella"),
    ],
)
def test_a_foreign_or_future_pointer_is_told(model: Path, pointer: Any, text: str) -> None:
    (model / "lamella.json").write_text(json.dumps(pointer))
    with pytest.raises(ValueError, match=text):
        load_model(model)


def test_a_version_that_is_not_there_is_told_with_those_that_are(model: Path) -> None:
    with pytest.raises(ValueError, match="has no version 7; it has 1, 2, 3"):
        roll_back(model, 7)
    with pytest.raises(FileNotFoundError, match=r"holds no model.*`lamella learn` makes one"):
        history(model / "nowhere")


def test_the_folder_of_a_run_is_told_where_its_model_is(model: Path) -> None:
    assert model.name == "model"
    with pytest.raises(FileNotFoundError, match=rf"holds no model \(.*\); that of this run is '{model}'"):
        history(model.parent)


def test_an_earlier_version_is_made_again_and_later_ones_can_be_dropped(model: Path) -> None:
    make_again(model, 2, "forgot task 2")
    assert [(v.number, v.current, v.what) for v in history(model)][-1] == (4, True, "forgot task 2")
    assert load_manifest(model)["tasks"] == load_manifest(model, 2)["tasks"]
    assert value(model) == 2
    lost = model / load_manifest(model, 3)["state"]["file"]
    drop_versions(model, [3])
    assert [v.number for v in history(model)] == [1, 2, 4]
    assert not lost.exists()
    assert value(model, 2) == value(model) == 2
    with pytest.raises(ValueError, match=r"version 4 of .* is in use; roll back to another one first"):
        drop_versions(model, [1, 4])
    assert [v.number for v in history(model)] == [1, 2, 4]


def one_task(**wrong: Any) -> dict[str, Any]:
    """A list of tasks whose only record has wrong fields."""
    return {"tasks": [{"name": "a", "classes": [0], **RECORD, **wrong}]}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"config": None}, "'config' should be tables"),
        ({"config": []}, "'config' should be tables"),
        ({"config": {"backbone": {}, "method": {}}}, "'config' should be tables"),
        ({"tasks": 5}, "'tasks' should be records"),
        ({"tasks": [1, 2]}, "in the record of task 1, it should be a table"),
        (one_task(classes=[2**62]), "in the record of task 1, 'classes' should be a list of class ids"),
        (one_task(name=5), "'name' should be a text"),
        (one_task(images=None), "'images' should be a whole number"),
        (one_task(seconds={}), "'seconds' should be a table of seconds with a total"),
        (one_task(seconds=3), "'seconds' should be a table of seconds with a total"),
        (one_task(trained=[1]), "'trained' should be a table of whole numbers"),
        (one_task(directions={"layer": "x"}), "'directions' should be a table of whole numbers"),
        (one_task(held_back="x"), "3.json' is damaged: in the record of task 1, 'held_back' should be a table of"),
        (one_task(held_back={"images": 0, "right": 0}), "'held_back' should be a table of"),
        (one_task(held_back={"images": 1, "right": 1, "temperature": 0}), "'held_back' should be a table of"),
        (one_task(held_back={"images": 1, "right": 1, "typicality": {"low": 0}}), "'held_back' should be a table of"),
        (one_task(held_back={"images": 1, "right": 1, "more": 0}), "'held_back' should be a table of"),
        (one_task(unreadable={"images": 1, "first": [2]}), "'unreadable' should be a table of images and first"),
        (one_task(beside={"images": 1}), "'beside' should be a table of images, learned"),
        ({"class_names": [[i, "same"] for i in range(3)]}, "two classes have the name 'same'"),
        ({"class_names": [[0, "a"], [0, "b"], [1, "c"], [2, "d"]]}, "two classes have the id 0"),
        ({"class_names": [["x"]]}, "'class_names' should be pairs"),
        ({"class_names": [[2**62, "x"]]}, "'class_names' should be pairs"),
        ({"notes": None}, "'notes' should be a table"),
        ({"state": "x"}, "'state' should be the name"),
        ({"state": {"file": "/dev/zero", "sha256": 64 * "0", "bytes": 4}}, "'state' should be the name"),
        ({"state": {"file": "../state-0123456789abcdef.safetensors"}}, "'state' should be the name"),
        ({"backbone_copy": "/etc/passwd"}, "'backbone_copy' should be the name"),
        ({"backbone_copy": "../backbone-0123456789abcdef.safetensors"}, "'backbone_copy' should be the name"),
    ],
)
def test_a_version_in_another_form_is_one_line_and_no_file_is_opened(
    model: Path, wrong: dict[str, Any], text: str
) -> None:
    path = model / "versions" / "3.json"
    found = json.loads(path.read_text()) | wrong
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    pointer = json.loads((model / "lamella.json").read_text())
    pointer["versions"]["3"] = sha256(path.read_bytes()).hexdigest()
    (model / "lamella.json").write_text(json.dumps(pointer))
    with pytest.raises(ValueError, match=text) as told:
        load_model(model)
    assert "\n" not in str(told.value)


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices are POSIX")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "longer"])
@pytest.mark.parametrize("name", ["lamella.json", "versions/3.json", "state"])
def test_only_plain_files_of_their_size_are_read(model: Path, tmp_path: Path, kind: str, name: str) -> None:
    file = model / (load_manifest(model)["state"]["file"] if name == "state" else name)
    if kind == "longer":
        file.write_bytes(file.read_bytes() + b" ")
    else:
        file.rename(tmp_path / "elsewhere")
        make = {"link": lambda: file.symlink_to(tmp_path / "elsewhere"), "pipe": lambda: os.mkfifo(file)}
        make.get(kind, file.mkdir)()
    if (kind, name) == ("longer", "lamella.json"):
        assert value(model) == 3, "a space after the JSON means nothing"
        return
    with pytest.raises(ValueError, match=r"is no plain file|is damaged"):
        load_model(model)


def test_deeply_nested_json_and_endless_numbers_are_one_line(model: Path) -> None:
    for content in (200_000 * "[", 5000 * "1"):
        (model / "lamella.json").write_text(content)
        with pytest.raises(ValueError, match="is not a readable JSON file"):
            load_model(model)


@pytest.mark.parametrize("name", ["../1", "01", "-1", "x", "1.0"])
def test_versions_are_whole_numbers(model: Path, name: str) -> None:
    pointer = json.loads((model / "lamella.json").read_text())
    pointer["versions"][name] = pointer["versions"]["1"]
    (model / "lamella.json").write_text(json.dumps(pointer))
    with pytest.raises(ValueError, match="was not written by lamella"):
        history(model)


def test_a_version_knows_what_it_was_made_from(model: Path) -> None:
    roll_back(model, 1)
    save(model, 4)
    make_again(model, 2, "again")
    assert [(v.number, v.parent) for v in history(model)] == [(1, None), (2, 1), (3, 2), (4, 1), (5, 4)]


def test_rolling_back_goes_to_what_the_version_was_made_from(model: Path) -> None:
    folder = ModelFolder(model)
    roll_back(model, 1)
    save(model, 4)  # versions 2 and 3 were bad
    assert folder.roll_back().number == 1
    roll_back(model, 3)
    assert [folder.roll_back().number for _ in range(2)] == [2, 1]
    with pytest.raises(ValueError, match=r"version 1 of .* is its first"):
        folder.roll_back()
    roll_back(model, 4)
    drop_versions(model, [1])
    with pytest.raises(ValueError, match=r"version 4 of .* is the oldest that is left of its line, so there is none"):
        folder.roll_back()
