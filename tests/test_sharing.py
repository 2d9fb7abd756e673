"""Tensors that do not change are stored once for all versions, and none is lost with the version that wrote it."""

from pathlib import Path

import pytest
import torch
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inspection import save_photos
from test_store import described
from torch import Tensor

from lamella import Learner
from lamella.common.files import write_tensors
from lamella.common.words import size
from lamella.learner.store.sharing import load_state
from lamella.learner.store.versions import drop_versions, history, load_manifest, load_model, roll_back, save_model

SIZE = 4000
RANK = ("method.rank=16", "method.epochs=1", "method.batch_size=4")


def save(folder: Path, state: dict[str, Tensor], tasks: int, *, whole: bool = False) -> None:
    save_model(folder, state, described(tasks), whole=whole)


def branches(tasks: int, *, small: float = 0.0) -> dict[str, Tensor]:
    """A large tensor for each task, which never changes, and a small one that always does."""
    own = {f"branch {i}": torch.full((SIZE,), float(i)) for i in range(tasks)}
    return own | {"small": torch.full((10,), small or float(tasks))}


def sizes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("state-*"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for tasks in (1, 2, 3):
        save(tmp_path / "model", branches(tasks), tasks)
    return tmp_path / "model"


def test_each_branch_is_stored_once_and_every_version_is_whole(model: Path) -> None:
    assert sizes(model) < 3 * 4 * SIZE + 3000
    for tasks in (1, 2, 3):
        state, _ = load_model(model, tasks)
        assert state.keys() == branches(tasks).keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in branches(tasks).items())


def test_a_deleted_version_leaves_the_files_that_others_need(model: Path) -> None:
    drop_versions(model, [1, 2])
    state, _ = load_model(model)
    assert all(torch.equal(state[name], tensor) for name, tensor in branches(3).items())
    save(model, branches(3, small=9.0), 3, whole=True)
    drop_versions(model, [3])
    assert len(list(model.glob("state-*"))) == 1, "a whole version needs no other file"
    assert float(load_model(model)[0]["small"][0]) == 9


def held(model: Path) -> int:
    """The size of all that the folder holds of its versions."""
    return sizes(model) + sum(file.stat().st_size for file in (model / "versions").iterdir())


def test_the_sizes_of_the_versions_add_up_to_what_the_folder_holds(model: Path) -> None:
    assert sum(version.bytes for version in history(model)) == held(model)
    assert all(4 * SIZE < version.bytes < 4 * SIZE + 3000 for version in history(model)), "each adds its own branch"
    before = held(model)
    assert drop_versions(model, [2]) == before - held(model) < 3000, "version 3 needs the branch of version 2"
    assert sum(version.bytes for version in history(model)) == held(model)
    assert history(model)[-1].bytes > 8 * SIZE
    save(model, branches(3, small=9.0), 3, whole=True)
    assert sum(version.bytes for version in history(model)) == held(model)
    before = held(model)
    assert drop_versions(model, [1, 3]) == before - held(model) > 12 * SIZE
    with pytest.raises(ValueError, match="in use"):
        drop_versions(model, [4])


def test_the_command_says_how_much_it_has_freed(lamella: Run, model: Path) -> None:
    before = held(model)
    out = lamella("prune", model, "--keep", 1)[1]
    freed = before - held(model)
    assert 0 < freed < 4000, "all branches are needed"
    assert out == f"{model}: 2 versions deleted: 1, 2 ({size(freed)}); 1 version left\n"


def test_what_is_made_from_an_earlier_version_shares_with_that_one(model: Path) -> None:
    roll_back(model, 1)
    other = branches(1) | {"branch 1": torch.full((SIZE,), 7.0)}
    save(model, other, 2)
    assert [part["file"] for part in load_manifest(model)["state"]["also"]] == [
        load_manifest(model, 1)["state"]["file"]
    ]
    assert float(load_model(model)[0]["branch 1"][0]) == 7
    assert float(load_model(model, 3)[0]["branch 1"][0]) == 1


def test_a_file_of_which_little_is_left_is_not_shared(tmp_path: Path) -> None:
    first = {"changes": torch.zeros(SIZE), "stays": torch.ones(SIZE // 10)}
    save(tmp_path, first, 1)
    save(tmp_path, first | {"changes": torch.ones(SIZE)}, 2)
    assert "also" not in load_manifest(tmp_path)["state"], "a tenth of a file would keep nine tenths that nobody needs"


def test_negative_zero_and_nan_are_told_apart_by_their_bits(tmp_path: Path) -> None:
    save(tmp_path, {"x": torch.zeros(10), "y": torch.full((SIZE,), float("nan"))}, 1)
    save(tmp_path, {"x": -torch.zeros(10), "y": torch.full((SIZE,), float("nan"))}, 2)
    state, _ = load_model(tmp_path)
    assert bool(state["x"].signbit().all())
    assert bool(state["y"].isnan().all())
    assert sizes(tmp_path) < 4 * SIZE + 2000


def test_tensors_of_any_form_and_kind_are_compared(tmp_path: Path) -> None:
    forms = {
        "cut": torch.arange(6000.0).view(60, 100)[:1, :1],
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(6.0).view(2, 3).T,
        "half": torch.ones(9, dtype=torch.bfloat16),
        "large": torch.ones(SIZE),
    }
    save(tmp_path, forms, 1)
    save(tmp_path, forms, 2)
    state, _ = load_model(tmp_path)
    assert all(torch.equal(state[name], tensor) for name, tensor in forms.items())
    assert sizes(tmp_path) < 4 * SIZE + 2000


def test_damage_of_a_shared_file_is_told_by_its_name(model: Path) -> None:
    file = model / load_manifest(model, 1)["state"]["file"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"'{file}' is damaged"):
        load_model(model)
    save(model, branches(4), 4)
    assert load_model(model)[0].keys() == branches(4).keys(), "the next version does not lean on a damaged file"
    file.unlink()
    with pytest.raises(FileNotFoundError, match="so version 2 is lost"):
        load_model(model, 2)


@pytest.mark.parametrize("names", [[["branch 0"]], "branch 0", [0]])
def test_names_of_shared_tensors_are_texts(model: Path, names: object) -> None:
    """A stranger's file may hold any JSON there, under a checksum that fits."""
    first, entry = (load_manifest(model, n)["state"] for n in (1, 2))
    shared = {"elsewhere": {first["file"]: names}}
    digest = write_tensors(model / entry["file"], {"small": torch.zeros(10)}, shared)
    length = (model / entry["file"]).stat().st_size
    with pytest.raises(ValueError, match="does not say what it shares; restore it from a copy"):
        load_state(model, entry | {"sha256": digest, "bytes": length})


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(1, 4)), min_size=1, max_size=7))
def test_any_history_gives_back_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool, int]]
) -> None:
    folder, saved = tmp_path_factory.mktemp("m"), {}
    for number, (changed, whole, back) in enumerate(steps, 1):
        state = {f"t{i}": torch.full((1500 * (i + 1),), float(number if i <= changed else 0)) for i in range(5)}
        save(folder, state, 1, whole=whole)
        saved[number] = state
        if back in saved:
            roll_back(folder, back)
    for number, state in saved.items():
        found, _ = load_model(folder, number)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    current = load_manifest(folder)["version"]
    drop_versions(folder, [number for number in saved if number != current])
    found, _ = load_model(folder)
    assert all(torch.equal(found[name], tensor) for name, tensor in saved[current].items())


def test_the_commands_share_what_they_learn_and_forget_into_files_of_their_own(lamella: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    new = ("--backbone", "test_vit", "backbone.weights=random", "backbone.size=32", "--method", "color")
    for i, day in enumerate(("one", "two", "three")):
        photos = save_photos(tmp_path / day, **{f"{day} a": 20 + i, f"{day} b": 220 + i})
        code, _, err = lamella("learn", model, photos, *(new if i == 0 else ()), *(RANK if i == 0 else ()))
        assert (code, err) == (0, "")
    files = [load_manifest(model, n)["state"] for n in (1, 2, 3)]
    assert [len(state.get("also", [])) for state in files] == [0, 1, 2]
    assert files[2]["bytes"] < 1.2 * files[0]["bytes"]
    code, _, err = lamella("forget", model, "one", "--purge")
    assert (code, err) == (0, "")
    assert "also" not in load_manifest(model)["state"]
    assert [file.name for file in model.glob("state-*")] == [load_manifest(model)["state"]["file"]]
    assert lamella("learn", model, save_photos(tmp_path / "four", e=50, f=90))[0] == 0
    assert "f" in Learner.load(model).class_names.values()
