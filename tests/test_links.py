"""Folders from strangers: a symbolic link in a model's or a run's folder makes no command change anything elsewhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from colours import NEW, TOKEN, photos
from conftest import Run
from fastapi.testclient import TestClient

from lamella.common.files import half_written, refuse_links
from lamella.learner.resume import PLACE
from lamella.learner.store.versions import VERSIONS, drop_versions, load_manifest
from lamella.serving.app import create_app
from lamella.serving.uploads_kept import CHECKPOINTS, FOLDER, IMAGES, NOTE, check_places, interrupted, take_in
from lamella.training.checkpoints import Checkpoints

SENT = "1790000000000000000-0a1b"
"""A name that a server gives to an archive."""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Somebody's files, under all names that Lamella would remove or write to."""
    names = (
        "photos/a.jpg",
        "task-thesis/a.tex",
        f"{SENT}/a.txt",
        ".mine.part",
        "9.json",
        "state-mine.safetensors",
        "log",
    )
    for name in names:
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text("precious")
    return tmp_path / "home"


def listed(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() if file.is_file() else "" for file in folder.rglob("*")}


@pytest.fixture
def unchanged(victim: Path) -> Callable[[], bool]:
    before = listed(victim)
    return lambda: listed(victim) == before


def refused(answer: tuple[int, str, str], link: Path) -> None:
    code, _, err = answer
    assert code == 2
    assert err.count("\n") == 1
    assert f"'{link}' is a symbolic link, which is not followed" in err
    assert err.rstrip().endswith("remove the link")


@pytest.mark.parametrize("name", [FOLDER, VERSIONS, f"{FOLDER}/{SENT}", f"{FOLDER}/{SENT}/{CHECKPOINTS}"])
def test_a_model_with_a_link_in_it_is_not_served(
    lamella: Run, model: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(model / VERSIONS, victim, dirs_exist_ok=True)  # a stranger who knows the place puts a link to it
    before = listed(victim)
    link = model / name
    if name == VERSIONS:
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("it is served"))
    refused(lamella("serve", model, "--port", 0), link)
    with pytest.raises(ValueError, match="is a symbolic link"):
        check_places(model)
    assert listed(victim) == before


def test_interrupted_archives_are_not_looked_for_behind_a_link(
    model: Path, victim: Path, unchanged: Callable[[], bool]
) -> None:
    (model / FOLDER).symlink_to(victim)
    with pytest.raises(ValueError, match="sent' is a symbolic link"):
        interrupted(model)
    with pytest.raises(ValueError, match="sent' is a symbolic link"):
        take_in(model)
    assert unchanged()


@pytest.mark.parametrize("own", [IMAGES, NOTE, ".lock"])
def test_an_archive_with_a_link_in_it_is_not_gone_on_with(model: Path, victim: Path, own: str) -> None:
    (model / FOLDER / SENT).mkdir(parents=True)
    (model / FOLDER / SENT / own).symlink_to(victim / "log")
    with pytest.raises(ValueError, match="is a symbolic link"):
        interrupted(model)
    assert (victim / "log").read_text() == "precious"


def test_only_what_a_server_named_is_taken_for_an_archive(model: Path) -> None:
    mine = model / FOLDER / "photos of mine"
    mine.mkdir(parents=True)
    (model / FOLDER / SENT).mkdir()
    assert interrupted(model) == []
    assert [folder.name for folder in (model / FOLDER).iterdir()] == [mine.name], (
        "what had not come in whole is removed"
    )


@pytest.mark.parametrize("name", [PLACE, VERSIONS, f"{PLACE}/task-1", ".lock"])
def test_nothing_is_learned_into_a_model_with_a_link_in_it(
    lamella: Run, model: Path, victim: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(model / VERSIONS, victim, dirs_exist_ok=True)
    before = listed(victim)
    link = model / name
    if name == VERSIONS:
        shutil.rmtree(link)
    if link.is_file():
        link.unlink()
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    refused(lamella("learn", model, photos(tmp_path / "new", NEW)), link)
    assert listed(victim) == before
    assert load_manifest(model)["version"] == 1


def test_a_first_learning_does_not_go_on_behind_a_link(
    lamella: Run, victim: Path, unchanged: Callable[[], bool], tmp_path: Path
) -> None:
    """Versions are swept up after a learning is stored: every other JSON file there would go."""
    model = tmp_path / "model"
    (model / PLACE).mkdir(parents=True)
    (model / PLACE / "what.json").write_text(json.dumps({"version": 0}))
    (model / VERSIONS).symlink_to(victim)
    refused(lamella("learn", model, photos(tmp_path / "new", NEW)), model / VERSIONS)
    assert unchanged()


def test_no_version_is_made_or_removed_behind_a_link(lamella: Run, model: Path, victim: Path, tmp_path: Path) -> None:
    assert lamella("learn", model, photos(tmp_path / "new", NEW))[0] == 0
    shutil.copytree(model / VERSIONS, victim, dirs_exist_ok=True)
    before = listed(victim)
    shutil.rmtree(model / VERSIONS)
    (model / VERSIONS).symlink_to(victim)
    refused(lamella("forget", model, "new", "--purge"), model / VERSIONS)
    with pytest.raises(ValueError, match="versions' is a symbolic link"):
        drop_versions(model, [1])
    assert listed(victim) == before


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = photos(tmp_path / "stream", ("dark", "bright", *NEW))
    path = tmp_path / "colours.toml"
    path.write_text(
        f'[scenario]\nsource = "{folder.as_posix()}"\ntasks = 2\n[backbone]\nname = "test_vit"\nweights = "random"\n'
        'size = 32\n[method]\nname = "nearest-mean"\n[fit]\ndevice = "cpu"\n'
    )
    return path


@pytest.mark.parametrize(
    "name", ["model", f"model/{VERSIONS}", "checkpoints", "log.jsonl", ".lock", "checkpoints/task-0"]
)
def test_a_run_with_a_link_in_its_folder_is_not_resumed(
    lamella: Run, config: Path, victim: Path, unchanged: Callable[[], bool], tmp_path: Path, name: str
) -> None:
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim / "log" if name == "log.jsonl" else victim)
    refused(lamella("run", config, "--out", tmp_path / "run", "--resume", "--quiet"), link)
    assert unchanged()


def test_a_seed_is_not_run_behind_a_link(
    lamella: Run, config: Path, victim: Path, unchanged: Callable[[], bool], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "seed-1").symlink_to(victim)
    answer = lamella("run", config, "--seeds", 2, "--out", tmp_path / "run", "--resume", "--quiet")
    refused(answer, tmp_path / "run" / "seed-1")
    assert unchanged()
    assert not (tmp_path / "run" / "seed-0").exists(), "it is said before the first one runs"


def test_a_run_removes_no_half_written_file_of_another_program(lamella: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "sub").mkdir(parents=True)
    mine, torn = out / "sub" / ".film.mkv.part", out / ".results.json.0a1b2c3d.part"
    mine.write_text("precious")
    torn.touch()
    assert half_written(out) == [torn]
    assert lamella("run", config, "--out", out, "--resume", "--quiet")[0] == 0
    assert mine.read_text() == "precious"
    assert not torn.exists()


def test_a_folder_that_the_user_names_may_be_a_link(lamella: Run, config: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, place in {"run": tmp_path / "elsewhere", "mine": model}.items():
        (tmp_path / name).symlink_to(place)
    assert lamella("run", config, "--out", tmp_path / "run", "--resume", "--quiet")[0] == 0
    assert (tmp_path / "elsewhere" / "log.jsonl").is_file()
    assert lamella("learn", tmp_path / "mine", photos(tmp_path / "new", NEW))[0] == 0
    assert load_manifest(model)["version"] == 2
    with TestClient(create_app(tmp_path / "mine", token=TOKEN)) as client:
        assert client.get("/health").json()["version"] == 2


def test_checkpoints_are_not_cleared_behind_a_link(victim: Path, unchanged: Callable[[], bool], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(victim)
    with pytest.raises(ValueError, match="checkpoints' is a symbolic link"):
        Checkpoints(tmp_path / "checkpoints")
    assert unchanged()


def test_a_link_that_leads_nowhere_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    refuse_links(tmp_path, tmp_path / "absent")
    with pytest.raises(ValueError, match="link' is a symbolic link"):
        refuse_links(tmp_path / "absent", tmp_path / "link")


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("{}", "does not describe an upload: no right value for 'name', 'images', 'ignored', 'starts', 'tasks'"),
        ('{"name": "a", "images": "2", "ignored": [], "starts": 0, "tasks": 1}', "no right value for 'images'"),
        ("[1]", "does not describe an upload"),
        ('{"name": ', "is not a readable JSON file"),
    ],
)
def test_an_upload_with_a_damaged_description_is_left_and_said(
    model: Path, caplog: pytest.LogCaptureFixture, note: str, said: str
) -> None:
    place = model / FOLDER / SENT
    (place / IMAGES).mkdir(parents=True)
    (place / NOTE).write_text(note)
    assert interrupted(model) == []
    assert (place / NOTE).read_text() == note
    (line,) = caplog.messages
    assert f"'{place / NOTE}' " in line
    assert said in line
    assert line.endswith("; delete the folder, and send the samples again")
