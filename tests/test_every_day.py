"""What a model meets that learns every day: the same folder again, a growing one, names, thin classes, broken files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image

from lamella import Learner
from lamella.common.locks import exclusive_lock
from lamella.data.sources.readable import load_readable
from lamella.learner.classes import drop_class, merge_classes, rename_class
from lamella.learner.folder import ModelFolder
from lamella.learner.next_task import newest_with_all
from lamella.learner.reference import Beside, Reference
from lamella.learner.seen import Seen
from lamella.learner.store.versions import drop_versions, load_manifest
from lamella.memory.gaussians import ClassGaussians


def photos(folder: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """Write images of noise around a level of each class, no two of them equal."""
    draws = np.random.default_rng(seed)
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = draws.integers(0, 60, (12, 12, 3)) + 60 * place
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{seed}-{i}.png")
    return folder


@pytest.fixture
def model(lamella: Run, tmp_path: Path) -> Path:
    photos(tmp_path / "inbox", {"crow": 6, "owl": 6})
    assert lamella("learn", tmp_path / "model", tmp_path / "inbox", "--no-train")[0] == 0
    return tmp_path / "model"


def test_the_same_folder_is_not_learned_twice_unless_that_is_asked_for(lamella: Run, model: Path) -> None:
    inbox = model.parent / "inbox"
    code, _, err = lamella("learn", model, inbox)
    assert (code, err.count("\n")) == (2, 1)
    assert "all 12 images of inbox were learned before, the newest as task 'inbox'" in err
    assert "--again" in err
    assert len(ModelFolder(model).history()) == 1
    moved = shutil.copytree(inbox, model.parent / "elsewhere")
    for path in sorted(moved.rglob("*.png")):
        path.rename(path.with_name(f"new-{path.name}"))
    assert lamella("learn", model, moved)[0] == 2, "contents count, not names"
    code, _, _ = lamella("learn", model, moved, "--again")
    assert (code, len(Learner.load(model).tasks)) == (0, 2)
    with pytest.raises(ValueError, match="learned before"):
        Learner.load(model).learn_from(inbox)
    assert Learner.load(model).learn_from(inbox, again=True).name == "inbox 2"


def test_of_a_folder_that_has_grown_only_the_new_images_are_learned(lamella: Run, model: Path) -> None:
    inbox = photos(model.parent / "inbox", {"crow": 3, "owl": 0, "wren": 4}, seed=1)
    code, out, _ = lamella("learn", model, inbox)
    assert code == 0
    assert "left out, learned before: 12 images" in out
    learner = Learner.load(model)
    assert [(task.name, task.images) for task in learner.tasks] == [("inbox", 10), ("inbox 2", 5)]
    assert sorted(learner.class_names.values()) == ["crow", "owl", "wren"]


def test_an_image_of_another_class_than_before_is_new(lamella: Run, model: Path) -> None:
    other = model.parent / "other"
    shutil.copytree(model.parent / "inbox" / "crow", other / "raven")
    code, out, _ = lamella("learn", model, other)
    assert (code, "6 of these images were learned before as 'crow'; check which class is right" in out) == (0, True)
    assert "other: 5 images to learn from, 0 held back;" in out, "one is held back, the others were trained on"
    assert "left out, held back before, so not learned: 1 image\n" in out
    seen = Learner.load(model).model.seen
    assert not seen.trained_on() & seen.held_back()
    (image,) = (p for p in sorted((other / "raven").iterdir()) if digest(p) in seen.held_back())
    (other / "jay").mkdir()
    shutil.move(image, other / "jay" / "one.png")
    shutil.rmtree(other / "raven")
    for again in ((), ("--again",)):
        code, _, err = lamella("learn", model, other, *again)
        assert (code, err.count("\n")) == (2, 1)
        assert "nothing of other is new: 1 image held back before, on which the model is measured" in err


def digest(path: Path) -> int:
    """What a model keeps of an image."""
    found = load_readable(path.parents[1])
    return found.digests[next(key for key in found.digests if key.endswith(f"{path.parent.name}/{path.name}"))]


def test_images_that_may_not_be_held_back_are_learned(lamella: Run, model: Path) -> None:
    """Of twelve images two are held back, one of each class: the other ten are learned again, not eight of them."""
    code, out, _ = lamella("learn", model, model.parent / "inbox", "--again")
    assert (code, "inbox 2: 10 images to learn from, 0 held back;" in out) == (0, True)
    assert "left out, held back before, so not learned: 2 images\n" in out
    assert "--again" not in out
    photos(model.parent / "inbox", {"crow": 10, "owl": 0}, seed=4)
    code, out, _ = lamella("learn", model, model.parent / "inbox", "--again")
    assert (code, "inbox 3: 18 images to learn from, 2 held back;" in out) == (0, True), "a fifth of ten new crows"


def test_copies_are_not_said_to_have_been_learned_before(lamella: Run, tmp_path: Path) -> None:
    day = photos(tmp_path / "day", {"crow": 6, "owl": 6})
    for path in sorted((day / "owl").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    shutil.copy(day / "owl" / "0-0.png", day / "crow" / "owl.png")
    code, out, _ = lamella("learn", tmp_path / "model", day, "--no-train")
    assert (code, "left out, copies of others: 6 images\n" in out) == (0, True)
    assert "learned before" not in out
    assert "day: 11 images to learn from, 2 held back;" in out, "the one in both classes is learned as both"


def test_a_learning_that_leaves_out_held_back_images_is_known_to_be_done(lamella: Run, model: Path) -> None:
    other = model.parent / "other"
    shutil.copytree(model.parent / "inbox" / "crow", other / "raven")
    assert lamella("learn", model, other)[0] == 0
    found = newest_with_all(Learner.load(model).model, load_readable(other))
    assert found == 1


def test_what_a_version_has_seen_goes_with_the_version(lamella: Run, model: Path) -> None:
    day = photos(model.parent / "day", {"wren": 4, "tit": 4}, seed=2)
    assert lamella("learn", model, day)[0] == 0
    assert lamella("learn", model, day)[0] == 2
    assert lamella("rollback", model)[0] == 0
    assert lamella("learn", model, day)[0] == 0, "the version that was rolled back to has not seen it"


def test_a_task_has_a_name_of_its_own(lamella: Run, model: Path) -> None:
    day = photos(model.parent / "day", {"wren": 4}, seed=2)
    code, _, err = lamella("learn", model, day, "--name", "inbox")
    assert code == 2
    assert "a task called 'inbox' was learned already; choose another name (--name)" in err
    assert lamella("learn", model, day, "--name", "monday")[0] == 0
    assert [task.name for task in Learner.load(model).tasks] == ["inbox", "monday"]


def test_a_class_with_a_single_image_is_learned_without_holding_back(lamella: Run, tmp_path: Path) -> None:
    day = photos(tmp_path / "day", {"crow": 1, "owl": 5})
    code, out, err = lamella("learn", tmp_path / "model", day, "--no-train")
    assert code == 0, err
    assert "5 images to learn from, 1 held back" in out
    assert "few images: crow (1)" in out
    alone = photos(tmp_path / "alone", {"wren": 1, "tit": 1}, seed=3)
    code, out, err = lamella("learn", tmp_path / "model", alone)
    assert (code, "2 images to learn from, 0 held back" in out) == (0, True), err


def test_images_that_were_trained_on_are_not_measured(lamella: Run, model: Path) -> None:
    inbox = photos(model.parent / "inbox", {"crow": 2}, seed=5)
    code, out, _ = lamella("evaluate", model, inbox)
    assert (code, "of 4 images" in out) == (0, True)
    assert "without 10 images that the model was trained on" in out
    learner = Learner.load(model)
    learner.model.seen.trained[:] = True
    learner.save(model)
    shutil.rmtree(inbox)
    photos(inbox, {"crow": 6, "owl": 6})
    code, _, err = lamella("evaluate", model, inbox)
    assert (code, "was trained on all 12 images" in err) == (2, True)


def test_unequal_counts_are_measured_by_class_too(lamella: Run, model: Path) -> None:
    test = photos(model.parent / "test", {"crow": 9, "owl": 2}, seed=7)
    out = lamella("evaluate", model, test)[1]
    assert "% if every class counts the same" in out
    found = json.loads(lamella("evaluate", model, test, "--json")[1])
    accuracies = [line["accuracy"] for line in found["classes"]]
    assert found["balanced_accuracy"] == pytest.approx(sum(accuracies) / 2)


def test_it_is_said_how_well_unknown_images_are_told_from_known_ones(lamella: Run, model: Path) -> None:
    test = photos(model.parent / "test", {"crow": 3, "owl": 3}, seed=7)
    shutil.copytree(test / "crow", test / "raven")  # the same images: no measure tells them apart
    for path in (test / "owl").iterdir():
        path.unlink()
    (test / "owl").rmdir()
    out = lamella("evaluate", model, test)[1]
    assert "familiarity tells learned classes from others in 50.0 % of pairs of images; this is too little" in out
    assert json.loads(lamella("evaluate", model, test, "--json")[1])["separation"] == pytest.approx(0.5)


def test_one_broken_file_does_not_stop_the_others(lamella: Run, model: Path) -> None:
    folder = photos(model.parent / "new", {"any": 2}, seed=9) / "any"
    (folder / "broken.png").write_bytes(b"no image")
    code, out, err = lamella("predict", model, folder)
    assert (code, out.count("\n")) == (1, 2)
    assert "broken.png: cannot be read: not an image that Pillow knows" in err
    code, out, _ = lamella("predict", model, folder, "--json")
    assert (code, [("error" in row) for row in json.loads(out)]) == (1, [False, False, True])
    code, out, _ = lamella("predict", model, folder, "--csv")
    assert (code, out.count("\n")) == (1, 3)
    code, out, err = lamella("predict", model, folder / "broken.png")
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_a_model_can_be_loaded_on_any_device(lamella: Run, model: Path) -> None:
    stored = json.loads(next((model / "versions").glob("*.json")).read_text())
    assert stored["config"]["fit"]["device"] == "auto"
    for command in (("predict", model, model.parent / "inbox"), ("evaluate", model, model.parent / "inbox")):
        assert lamella(*command, "--device", "cpu")[0] == 0
        code, _, err = lamella(*command, "--device", "cuda:99")
        assert (code, err.count("\n")) == (2, 1)
        assert "device 'cuda:99' is not available here" in err
    day = photos(model.parent / "day", {"wren": 4}, seed=2)
    assert lamella("learn", model, day, "fit.device=cpu")[0] == 0, "a device is no setting of the model"


def test_old_versions_are_pruned_but_never_the_current_one(lamella: Run, model: Path) -> None:
    for day in range(4):
        folder = photos(model.parent / f"day{day}", {"crow": 2}, seed=20 + day)
        assert lamella("learn", model, folder)[0] == 0
    assert lamella("rollback", model, "--to", 2)[0] == 0
    code, out, _ = lamella("prune", model, "--keep", 2)
    assert (code, "versions deleted: 1, 3 (" in out) == (0, True)
    assert [version.number for version in ModelFolder(model).history()] == [2, 4, 5]
    assert len(list(model.glob("state-*"))) == 3
    assert "none is deleted" in lamella("prune", model, "--keep", 9)[1]
    assert lamella("prune", model, "--keep", 0)[0] == 2
    Learner.load(model)


def test_a_name_of_a_task_is_not_empty(lamella: Run, model: Path) -> None:
    day = photos(model.parent / "day", {"wren": 4}, seed=2)
    for name in ("", " "):
        code, _, err = lamella("learn", model, day, "--name", name)
        assert (code, "the name of the task is empty; give a name" in err) == (2, True)
    with pytest.raises(ValueError, match="the name of the task is empty"):
        Learner.load(model).learn_from(day, name="")


def test_a_model_that_has_forgotten_all_is_not_new(lamella: Run, tmp_path: Path) -> None:
    learner = Learner.create(method="linear-probe")
    learner.learn_from(photos(tmp_path / "day", {"crow": 4, "owl": 4}), name="day")
    learner.save(tmp_path / "model")
    assert lamella("forget", tmp_path / "model", "day")[0] == 0
    code, out, _ = lamella("learn", tmp_path / "model", tmp_path / "day", "--name", "again")
    assert (code, "new model" in out, "again: " in out) == (0, False, True)
    assert "learns it as task 1; expected: " in out


def test_a_class_is_renamed_for_every_method(lamella: Run, model: Path) -> None:
    before = Learner.load(model).predict([next((model.parent / "inbox" / "owl").iterdir())], top=2)
    code, out, _ = lamella("classes", model, "rename", "owl", "barn owl")
    assert (code, "renamed owl to barn owl; this is version 2" in out) == (0, True)
    after = Learner.load(model).predict([next((model.parent / "inbox" / "owl").iterdir())], top=2)
    assert after[0].confidences == before[0].confidences
    assert {name.replace("barn ", "") for name in after[0].classes} == set(before[0].classes)
    assert any("barn owl" in line and "inbox" in line for line in lamella("classes", model)[1].splitlines())
    for names, text in (
        (("owl", "x"), "no class is called 'owl'"),
        (("crow", "barn owl"), "a class is called 'barn owl' already"),
        (("crow",), "rename needs OLD NEW, but got crow"),
    ):
        code, _, err = lamella("classes", model, "rename", *names)
        assert (code, text in err, err.count("\n")) == (2, True, 1)
    assert "'renme' is unknown; use rename, merge, drop" in lamella("classes", model, "renme", "a", "b")[2]


def test_a_rename_stores_nothing_of_what_was_learned_again(lamella: Run, model: Path) -> None:
    assert lamella("classes", model, "rename", "owl", "barn owl")[0] == 0
    assert lamella("classes", model, "rename", "barn owl", "Tyto alba")[0] == 0
    first, second, third = (load_manifest(model, number)["state"] for number in (1, 2, 3))
    assert third["also"] == second["also"] == [first]
    assert third["bytes"] == second["bytes"] < 1000
    before = Learner.load(model, 1).predict([next((model.parent / "inbox" / "owl").iterdir())], top=2)
    assert lamella("prune", model, "--keep", 1)[0] == 0
    after = Learner.load(model).predict([next((model.parent / "inbox" / "owl").iterdir())], top=2)
    assert after[0].confidences == before[0].confidences
    assert lamella("classes", model, "merge", "Tyto alba", "crow")[0] == 0
    assert "also" not in load_manifest(model)["state"], "a version without a class needs no file of one that has it"


def test_merged_and_dropped_classes_are_as_if_learned_so(tmp_path: Path) -> None:
    day = photos(tmp_path / "day", {"crow": 5, "raven": 7, "owl": 6})
    merged, dropped = (Learner.create(method="nearest-mean") for _ in range(2))
    for learner in (merged, dropped):
        learner.learn_from(day)
    merge_classes(merged.model, "raven", "crow")
    drop_class(dropped.model, "raven")
    statistics: ClassGaussians = merged.method.statistics  # type: ignore[assignment]
    assert merged.tasks[0].classes == tuple(merged.class_names)
    assert statistics.counts.tolist() == [10, 5]
    assert set(merged.class_names.values()) == set(dropped.class_names.values()) == {"crow", "owl"}
    assert set(merged.model.held_back.labels.tolist()) <= set(merged.class_names)
    for learner in (merged, dropped):
        learner.save(tmp_path / "model")
        loaded = Learner.load(tmp_path / "model")
        images = sorted((day / "raven").iterdir())
        assert loaded.predict(images) == learner.predict(images)
        assert loaded.learn_from(photos(tmp_path / "more", {"raven": 4}, seed=4)).name == "more"


def test_statistics_of_a_union_are_those_of_all_features() -> None:
    draws = torch.Generator().manual_seed(0)
    parts = {label: torch.randn(4 + label, 3, generator=draws) + label for label in range(3)}

    def statistics(labels: dict[int, int]) -> ClassGaussians:
        found = ClassGaussians(3, per_class=True)
        x = torch.cat([parts[old] for old in labels])
        y = torch.cat([torch.full((len(parts[old]),), new) for old, new in labels.items()])
        found.add(x, y, sorted(set(labels.values())))
        return found

    for change, wanted in (
        (lambda s: s.merge(2, 0), statistics({0: 0, 1: 1, 2: 0})),
        (lambda s: s.drop(2), statistics({0: 0, 1: 1})),
    ):
        found = statistics({0: 0, 1: 1, 2: 2})
        change(found)
        for name, tensor in wanted.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["seq-lora", "nearest-mean+align", "streaming-lda", "seq-lora+align"])
def test_what_cannot_be_exact_is_refused_and_changes_nothing(tmp_path: Path, method: str) -> None:
    learner = Learner.create(method=method)
    learner.learn_from(photos(tmp_path / "day", {"crow": 3, "raven": 3, "owl": 3}))
    before = {name: tensor.clone() for name, tensor in learner.method.state_dict().items()}
    with pytest.raises(ValueError, match=r"cannot (drop|be dropped)|cannot drop a class"):
        drop_class(learner.model, "raven")
    if method.startswith("seq"):
        with pytest.raises(ValueError, match=r"^this method cannot merge classes: weights were trained"):
            merge_classes(learner.model, "raven", "crow")
    assert all(torch.equal(before[name], own) for name, own in learner.method.state_dict().items())
    rename_class(learner.model, "raven", "grip")
    assert "grip" in learner.class_names.values()


def test_what_was_seen_is_checked_where_it_is_read() -> None:
    seen = Seen()
    seen.add([5, -7], torch.tensor([0, 1]), 0, trained=True)
    state = seen.tensors()
    assert Seen.taken_from(dict(state)).trained_on() == {5, -7}
    with pytest.raises(ValueError, match="lacks 'labels' of 'seen'"):
        Seen.taken_from({name: tensor for name, tensor in state.items() if name != "seen/labels"})
    with pytest.raises(ValueError, match="sizes that do not fit"):
        Seen.taken_from({**state, "seen/labels": torch.zeros(3, dtype=torch.int64)})


def test_it_is_said_whether_training_pays(lamella: Run, tmp_path: Path) -> None:
    model, days = tmp_path / "model", []
    for day in range(3):
        days.append(photos(tmp_path / f"day{day}", {f"a{day}": 10, f"b{day}": 10}, seed=day))
        code, out, err = lamella("learn", model, days[-1], "--method", "inflora+align", "method.epochs=1")[:3]
        assert code == 0, err
    assert "held-back images of all tasks so far: " in out
    assert "; without training: class means " in out
    learner = Learner.load(model)
    beside = learner.tasks[-1].beside
    assert beside is not None
    assert beside.images == 12
    assert ("training has not paid so far" in out) is (not beside.pays)
    plain = Learner.create(method="nearest-mean")
    for day in days:
        assert plain.learn_from(day).beside is None, "nothing is trained, so there is nothing to compare"
    means, discriminant = learner.model.reference.count()
    assert (means, discriminant) == (beside.class_means, beside.discriminant)
    held = [guess for day in days for guess in _held_back(plain, day)]
    assert sum(held) == means, "the same class means, on the same images"
    learner.model.reference = Reference()
    more = photos(tmp_path / "more", {"c": 6}, seed=9)
    assert learner.learn_from(more).beside is None, "a model of an older version has no reference for its old tasks"


def _held_back(learner: Learner, folder: Path) -> list[bool]:
    """Whether each held-back image of a task is classified correctly."""
    source = load_readable(folder).divided()
    names = [source.class_names[label] for label in source.test.labels.tolist()]
    return [g.classes[0] == name for g, name in zip(learner.predict(source.test, top=1), names, strict=True)]


def test_what_pays_is_better_than_both() -> None:
    assert Beside(10, 8, 7, 7).pays
    assert not Beside(10, 8, 8, 7).pays
    assert not Beside(10, 8, 7, 8).pays


def test_no_image_is_both_trained_on_and_held_back(tmp_path: Path) -> None:
    day = photos(tmp_path / "day", {"crow": 8, "owl": 8})
    for path in sorted(day.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    learner = Learner.create(method="nearest-mean")
    assert learner.learn_from(day).images == 12, "a copy under another name is the same image"
    for path in sorted(day.rglob("*.png")):
        path.rename(path.with_name(f"again-{path.name}"))
    learner.learn_from(day, again=True)
    seen = learner.model.seen
    assert not seen.trained_on() & seen.held_back()
    assert len(seen.held_back()) == int((~seen.trained).sum()), "nothing is held back twice"


def test_a_learning_that_fails_in_its_last_pass_leaves_no_usable_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner.create(method="nearest-mean")
    monkeypatch.setattr(type(learner.model), "hold_back", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        learner.learn_from(photos(tmp_path / "day", {"crow": 4, "owl": 4}))
    with pytest.raises(RuntimeError, match="did not finish"):
        learner.save(tmp_path / "model")


def test_what_was_forgotten_can_be_purged_later(lamella: Run, model: Path) -> None:
    day = photos(model.parent / "day", {"wren": 4}, seed=2)
    assert lamella("learn", model, day)[0] == 0
    assert "--purge removes them: 2" in lamella("forget", model, "day")[1]
    code, out, _ = lamella("forget", model, "day", "--purge")
    assert (code, "versions removed: 2" in out) == (0, True)
    assert [v.number for v in ModelFolder(model).history()] == [1, 3]
    assert lamella("forget", model, "day", "--purge")[0] == 2


def test_forgetting_keeps_the_names_that_classes_have_now(lamella: Run, model: Path) -> None:
    assert lamella("learn", model, photos(model.parent / "day", {"wren": 4}, seed=2))[0] == 0
    assert lamella("classes", model, "rename", "owl", "barn owl")[0] == 0
    assert lamella("forget", model, "day")[0] == 0
    assert set(Learner.load(model).class_names.values()) == {"crow", "barn owl"}


def test_forgetting_keeps_the_names_that_classes_had_before(lamella: Run, model: Path) -> None:
    assert lamella("learn", model, photos(model.parent / "day", {"wren": 4}, seed=2))[0] == 0
    assert lamella("classes", model, "rename", "owl", "barn owl")[0] == 0
    assert lamella("classes", model, "rename", "wren", "tit")[0] == 0
    assert lamella("forget", model, "day")[0] == 0
    assert Learner.load(model).model.former_names == {"owl": 1}, "no name is left of a class that was forgotten"
    code, _, err = lamella("learn", model, model.parent / "inbox")
    assert (code, "all 12 images of inbox were learned before" in err) == (2, True)
    photos(model.parent / "inbox", {"crow": 0, "owl": 4}, seed=8)
    assert "more of: barn owl" in lamella("learn", model, model.parent / "inbox")[1]


def test_a_former_name_is_free_again_once_the_class_that_took_it_is_forgotten(lamella: Run, model: Path) -> None:
    assert lamella("classes", model, "rename", "owl", "barn owl")[0] == 0
    assert lamella("learn", model, photos(model.parent / "day", {"wren": 4}, seed=2))[0] == 0
    assert lamella("classes", model, "rename", "wren", "owl")[0] == 0
    assert lamella("forget", model, "day")[0] == 0
    assert Learner.load(model).model.former_names == {"owl": 1}


def test_forgetting_returns_to_a_version_of_the_own_line(lamella: Run, model: Path) -> None:
    """Version 2 renames, 3 learns on top of it; 4 learns on top of version 1, whose tasks are those of version 2."""
    day = photos(model.parent / "day", {"wren": 4}, seed=2)
    assert lamella("classes", model, "rename", "owl", "barn owl")[0] == 0
    assert lamella("learn", model, day)[0] == 0
    assert lamella("rollback", model, "--to", 1)[0] == 0
    assert lamella("learn", model, day)[0] == 0
    assert "it is as it was in version 1;" in lamella("forget", model, "day")[1]
    assert lamella("rollback", model, "--to", 3)[0] == 0
    assert "it is as it was in version 2;" in lamella("forget", model, "day")[1]
    assert lamella("rollback", model, "--to", 4)[0] == 0
    drop_versions(model, [1])
    assert "it is as it was in version 6;" in lamella("forget", model, "day")[1], "better than a refusal"


def test_going_back_never_meets_a_version_that_was_left(lamella: Run, model: Path) -> None:
    """Version 2 was bad, 3 and 4 were made from 1; also where the versions between were deleted."""
    for number in (2, 3, 4):
        if number == 3:
            assert lamella("rollback", model)[0] == 0
        assert lamella("learn", model, photos(model.parent / f"d{number}", {"crow": 3}, seed=30 + number))[0] == 0
    drop_versions(model, [3])
    assert ModelFolder(model).roll_back().number == 1


def test_images_under_a_former_name_are_of_the_class_as_it_is_called_now(lamella: Run, model: Path) -> None:
    inbox = model.parent / "inbox"
    assert lamella("classes", model, "rename", "owl", "barn owl")[0] == 0
    assert lamella("learn", model, inbox)[0] == 2, "nothing is new"
    photos(inbox, {"crow": 0, "owl": 4}, seed=8)
    code, out, _ = lamella("learn", model, inbox)
    assert (code, "more of: barn owl" in out) == (0, True)
    assert set(Learner.load(model).class_names.values()) == {"crow", "barn owl"}
    assert lamella("classes", model, "merge", "crow", "barn owl")[0] == 0
    assert lamella("learn", model, inbox)[0] == 2, "what was merged does not come back either"


def test_a_learner_that_does_not_know_of_a_rename_does_not_undo_it(lamella: Run, model: Path) -> None:
    learner = Learner.load(model)
    assert lamella("classes", model, "rename", "owl", "barn owl")[0] == 0
    with pytest.raises(ValueError, match="holds another model than this learner"):
        learner.learn_from(photos(model.parent / "day", {"wren": 4}, seed=2), folder=model)


def test_a_model_is_not_saved_while_another_process_changes_it(model: Path) -> None:
    learner = Learner.load(model)
    with exclusive_lock(model, "busy"), pytest.raises(BlockingIOError, match="another process is changing"):
        learner.save(model)
    assert len(ModelFolder(model).history()) == 1


def test_a_class_with_one_image_is_left_when_all_others_are_dropped(tmp_path: Path) -> None:
    learner = Learner.create(method={"name": "nearest-mean", "align": {"own_covariance": 0.5}})
    learner.learn_from(photos(tmp_path / "day", {"crow": 12, "owl": 1}))
    drop_class(learner.model, "crow")
    assert learner.predict(sorted((tmp_path / "day" / "owl").iterdir()))[0].classes == ("owl",)


def test_tasks_without_contents_are_known_by_the_names_of_their_files(tmp_path: Path) -> None:
    from lamella.learner.inspection.evaluation import images_to_measure

    day = photos(tmp_path / "day", {"crow": 10, "owl": 10})
    learner = Learner.create(method="nearest-mean")
    learner.learn_from(day)
    learner.model.seen = Seen()  # as after a learning of an older version
    learner.learn_from(photos(tmp_path / "more", {"wren": 5}, seed=3))
    found = images_to_measure(str(day), learner.model)
    assert (len(found.images), found.part) == (4, "its held-back part")
