"""Samples that are taken out, or whose label is corrected: the model is as if it had been learned so at first."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from streams import draw, shallow_backbone
from torch import Tensor

from lamella import Learner
from lamella.data.sources.pointed import pointed_at, read_corrections
from lamella.learner.folder import ModelFolder
from lamella.learner.inspection.facts import origins
from lamella.learner.seen import Seen
from lamella.learner.store.state import learned_state
from lamella.memory.gaussians import ClassGaussians
from lamella.memory.mixtures import ClassMixtures
from lamella.methods.ranpac import RanPAC
from lamella.methods.streaming_lda import StreamingLDA

BACKBONE = {"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0}
RANPAC = {"name": "ranpac", "projections": 60, "ridge": 1000.0, "epochs": 1, "batch_size": 8}
EXACT: list[dict[str, Any]] = [
    {"name": "nearest-mean"},
    {"name": "streaming-lda"},
    {**RANPAC, "adapt": "none"},
    {**RANPAC, "adapt": "none", "scatter": "within", "unit": True},
    {**RANPAC},
    {"name": "nearest-mean", "align": True},
    {"name": "streaming-lda", "align": {"drift": "local", "own_covariance": 0.5, "own_directions": "all"}},
]
NAMES = ("nearest-mean", "lda", "ranpac", "ranpac-within", "ranpac-adapted", "align", "align-own")


def photos(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Images of noise around a level of each class, below train/ and two of each below test/."""
    draws = np.random.default_rng(seed)
    for place, (name, count) in enumerate(sorted(counts.items())):
        for part, number in (("train", count), ("test", 2)):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                pixels = draws.integers(0, 90, (16, 16, 3)) + 50 * place
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{seed}-{i}.png")
    return folder


def days(folder: Path) -> tuple[Path, Path]:
    """Two days: the second has more of a class of the first."""
    first = photos(folder / "first", {"crow": 5, "owl": 6, "wren": 4})
    return first, photos(folder / "second", {"jay": 5, "owl": 5}, seed=1)


def taught(method: dict[str, Any], *folders: Path) -> Learner:
    learner = Learner.create(backbone=BACKBONE, method=method, fit={"device": "cpu"})
    for folder in folders:
        learner.learn_from(folder)
    return learner


def alike(learner: Learner, other: Learner, solved: float = 1e-6) -> None:
    """Both hold the same, to 1e-6 of the largest number of each tensor, and to `solved` what a ridge is solved for."""
    assert [(r.name, r.classes, r.images) for r in learner.tasks] == [
        (r.name, r.classes, r.images) for r in other.tasks
    ]
    assert learner.class_names == other.class_names
    states = [learned_state(each.method) | each.model.held_back.tensors() for each in (learner, other)]
    assert states[0].keys() == states[1].keys()
    assert sum(tensor.numel() for tensor in states[0].values()) > 100
    for name, expected in states[1].items():
        scale = float(expected.double().abs().max()) if expected.numel() else 1.0
        near = (solved if name.endswith("solution") else 1e-6) * max(scale, 1e-30)
        torch.testing.assert_close(states[0][name], expected, rtol=0, atol=near, msg=name)
    assert learner.confidence.temperature == pytest.approx(other.confidence.temperature, rel=1e-4)
    for each in ("labels", "tasks", "trained"):
        ours, theirs = (getattr(found.model.seen, each) for found in (learner, other))
        order, wanted = (found.model.seen.digests.argsort() for found in (learner, other))
        assert torch.equal(ours[order], theirs[wanted])


@pytest.mark.parametrize("method", EXACT, ids=NAMES)
def test_what_is_left_is_as_if_the_images_had_never_been_there(method: dict[str, Any], tmp_path: Path) -> None:
    first, second = days(tmp_path)
    given = [second / "train" / "jay" / "1-0.png", second / "train" / "owl" / "1-3.png"]
    if "epochs" not in method or method.get("adapt") == "none":  # else the first task has trained branches
        given += [first / "train" / "owl" / "0-2.png", first / "train" / "owl" / "0-5.png"]
    given += [second / "test" / "owl" / "1-1.png"]  # was held back
    learner = taught(method, first, second)
    before = learner.confidence.temperature
    done = learner.remove(given)
    assert (done.samples, done.trained, done.held_back, done.gone) == (len(given), len(given) - 1, 1, ())
    assert learner.tasks[1].held_back is None, "it was measured with an image that has left"
    assert learner.tasks[0].held_back is not None
    moved = [shutil.move(path, tmp_path / f"{i}.png") for i, path in enumerate(given)]
    alike(learner, taught(method, first, second))
    assert learner.confidence.temperature != before
    with pytest.raises(ValueError, match=rf"never learned by this model: all {len(moved)} images"):
        learner.remove(moved)


@pytest.mark.parametrize("method", EXACT[3:6], ids=NAMES[3:6])
def test_a_corrected_label_is_as_if_it_had_been_learned_so(method: dict[str, Any], tmp_path: Path) -> None:
    first, second = days(tmp_path)
    wrong = {second / "train" / "jay" / "1-2.png": "owl", second / "test" / "owl" / "1-0.png": "jay"}
    wrong[second / "train" / "owl" / "1-1.png"] = "crow"  # the second task had no crow
    learner = taught(method, first, second)
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name},{right}" for path, right in wrong.items()]
    (tmp_path / "wrong.csv").write_text("\n".join(["path,label,right", *rows]))
    done = learner.correct(tmp_path / "wrong.csv")
    assert (done.samples, done.trained, done.held_back) == (3, 2, 1)
    for path, right in wrong.items():
        place = path.parents[1] / right
        place.mkdir(exist_ok=True)
        shutil.move(path, place / f"moved-{path.name}")
    expected = taught(method, first, second)
    expected.tasks[1].classes = (*expected.tasks[1].classes[1:], expected.tasks[1].classes[0])  # crow came last
    keep, held = expected.model.held_back, learner.model.held_back
    order = [int((held.features - row).norm(dim=1).argmin()) for row in keep.features]
    held.features, held.labels, held.tasks = held.features[order], held.labels[order], held.tasks[order]
    alike(learner, expected)


def test_a_class_of_which_nothing_is_left_needs_to_be_asked_for(lamella: Run, tmp_path: Path) -> None:
    first, second = days(tmp_path)
    model, wrens = tmp_path / "model", first / "train" / "wren"
    learner = taught({"name": "streaming-lda"}, first, second)
    learner.save(model)
    code, _, err = lamella("remove", model, wrens)
    assert (code, err.count("\n")) == (2, 1)
    assert "'wren': learned from no other images, so the class would be gone: --whole-classes" in err
    code, out, _ = lamella("remove", model, wrens, "--whole-classes")
    assert code == 0
    assert "removed 4 images (4 in what was learned); this is version 2\n" in out
    assert "nothing is left of, so no class any more: wren\n" in out
    left = Learner.load(model)
    shutil.rmtree(wrens)
    shutil.rmtree(first / "test" / "wren")
    expected = taught({"name": "streaming-lda"}, first, second)
    assert set(left.class_names.values()) == set(expected.class_names.values()) == {"crow", "owl", "jay"}
    images = sorted(second.rglob("*.png"))
    for ours, theirs in zip(left.predict(images), expected.predict(images), strict=True):
        assert ours.classes == theirs.classes
        assert ours.confidences == pytest.approx(theirs.confidences, abs=1e-5)
    code, _, err = lamella("remove", model, first, second, "--whole-classes")
    assert (code, "these are all images of all classes ('crow', 'owl', 'jay'); delete the model's folder" in err) == (
        2,
        True,
    )


def test_the_commands_make_versions_and_refusals_make_none(lamella: Run, tmp_path: Path) -> None:
    first, second = days(tmp_path)
    model = tmp_path / "model"
    taught({"name": "nearest-mean"}, first, second).save(model)
    (tmp_path / "out.csv").write_text(
        "path\nfirst/train/owl/0-0.png\nfirst/train/owl/0-0.png\nsecond/test/jay/1-0.png\n"
    )
    code, out, _ = lamella("remove", model, tmp_path / "out.csv")
    assert (code, "removed 2 images (1 in what was learned, 1 held back); this is version 2" in out) == (0, True)
    assert lamella("remove", model, tmp_path / "out.csv")[0] == 2
    code, out, _ = lamella("remove", model, tmp_path / "out.csv", first / "train" / "crow" / "0-1.png", "--known-only")
    assert (code, "left out, never learned: 2 images" in out) == (0, True)
    (tmp_path / "wrong.csv").write_text("path,label,right\nfirst/train/owl/0-1.png,owl,wren\n")
    assert (
        "corrected 1 image (1 in what was learned); this is version 4"
        in lamella("correct", model, tmp_path / "wrong.csv")[1]
    )
    code, _, err = lamella("correct", model, tmp_path / "wrong.csv")
    assert (code, "this was learned as 'wren', not as 'owl'" in err) == (2, True)
    assert [v.what for v in ModelFolder(model).history()] == [
        "",
        "removed 2 images",
        "removed 1 image",
        "corrected 1 image",
    ]
    assert "all" not in lamella("learn", model, first)[1], "what was taken out is new again"
    assert lamella("rollback", model, "--to", 1)[0] == 0
    assert Learner.load(model).tasks[0].images == 15
    assert lamella("rollback", model, "--to", 4)[0] == 0
    code, out, _ = lamella("forget", model, "second")
    assert code == 2, "the version before it holds what was taken out of the first task"


def test_a_task_of_which_nothing_is_left_stays_in_the_history(lamella: Run, tmp_path: Path) -> None:
    first = photos(tmp_path / "first", {"crow": 5, "owl": 6})
    second = photos(tmp_path / "second", {"owl": 4}, seed=1)
    model = tmp_path / "model"
    taught({"name": "streaming-lda"}, first).save(model)
    learner = Learner.load(model)
    learner.learn_from(second)
    learner.save(model)
    learned = origins(model)
    assert lamella("remove", model, second)[0] == 0
    assert origins(model) == learned, "when it was learned is known as before"
    learner = Learner.load(model)
    assert [(record.name, len(record.classes), record.images) for record in learner.tasks] == [
        ("first", 2, 11),
        ("second", 0, 0),
    ]
    expected = taught({"name": "streaming-lda"}, first)
    torch.testing.assert_close(learned_state(learner.method), learned_state(expected.method), rtol=0, atol=1e-5)
    for words in (("inspect", model), ("inspect", model, "--json"), ("classes", model), ("evaluate", model, first)):
        assert lamella(*words)[0] == 0, words
    assert lamella("learn", model, second, "--name", "again")[0] == 0
    again = taught({"name": "streaming-lda"}, first, second)
    torch.testing.assert_close(
        learned_state(Learner.load(model).method), learned_state(again.method), rtol=0, atol=1e-5
    )


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"name": "seq-lora", "epochs": 1},
        "first",
        r"seq-lora cannot undo .* 'first': weights that were trained on them hold",
    ),
    (
        {"name": "linear-probe", "epochs": 1},
        "first",
        r"forget 'first' \(`lamella forget`\) and learn again, .*: first \(15",
    ),
    (RANPAC, "first", r"begin a new model and learn again, without them: first, second \(25 images, which took .* s\)"),
    ({**RANPAC, "ridge": None}, "second", r"'second': the ridge was chosen on samples of this task"),
    (
        {"name": "nearest-mean", "align": {"head": "refit", "epochs": 1}},
        "second",
        r"go back to before 'second' .*: second",
    ),
    ({"name": "nearest-mean", "align": {"own_covariance": 0.5}}, "first", r"alignment keeps more of them than sums"),
    ({"name": "nearest-mean", "align": {"means": 2}}, "first", r"alignment keeps more of them than sums"),
    (
        {"name": "seq-lora", "rank": 2, "epochs": 1, "align": {"own_covariance": 0.5}},
        "first",
        r"weights that were trained on them hold them",
    ),
]


@pytest.mark.parametrize(("method", "day", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_undone_is_said_with_what_rebuilding_costs(
    method: dict[str, Any], day: str, said: str, tmp_path: Path
) -> None:
    learner = taught(method, *days(tmp_path))
    before = {name: tensor.clone() for name, tensor in learner.method.state_dict().items()}
    image = next(path for path in sorted((tmp_path / day / "train").rglob("*.png")))
    with pytest.raises(ValueError, match=said) as refused:
        learner.remove([image])
    assert "\n" not in str(refused.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.method.state_dict().items())
    (tmp_path / "wrong.csv").write_text(f"path,label,right\n{image},{image.parent.name},owl\n")
    with pytest.raises(ValueError, match=said):
        learner.correct(tmp_path / "wrong.csv")
    assert learner.predict([image])


def test_a_chosen_ridge_lets_earlier_tasks_be_corrected(tmp_path: Path) -> None:
    method = {**RANPAC, "ridge": None, "adapt": "none"}
    first, second = days(tmp_path)
    learner = taught(method, first, second)
    learner.remove([first / "train" / "crow" / "0-0.png"])
    (first / "train" / "crow" / "0-0.png").unlink()
    alike(learner, taught(method, first, second), solved=1e-5)  # the condition number of G is about 3000


def test_held_back_samples_leave_a_trained_model_where_features_stay(tmp_path: Path) -> None:
    first, second = days(tmp_path)
    learner = taught({"name": "linear-probe", "epochs": 1}, first, second)
    done = learner.remove(first / "test" / "owl")
    assert (done.trained, done.held_back) == (0, 2)
    assert len(learner.model.held_back) == 8
    learner = taught({"name": "seq-lora", "epochs": 1, "align": True}, first, second)
    with pytest.raises(ValueError, match="held back cannot be told from what is kept of others, because features have"):
        learner.remove([first / "test" / "owl"])
    learner = taught({"name": "nearest-mean", "calibrate": True}, first)  # does not classify by features alone
    with pytest.raises(ValueError, match="because only what was measured on all of them is kept; to rebuild it, begin"):
        learner.remove([first / "test" / "owl"])


BAD: list[tuple[str, str]] = [
    ("path,label\nfirst/train/owl/0-1.png,owl\n", "no column 'right' of the right labels; its columns are path, label"),
    ("file,label,right\nx.png,owl,wren\n", "no column 'path' of images"),
    ("path,label,right,right\nfirst/train/owl/0-1.png,owl,crow,wren\n", "line 1: two columns are called 'right'"),
    ("path,old,right\nfirst/train/owl/0-1.png,owl,wren\n", "no column of the labels that they were learned as"),
    ("path,label,right\nfirst/train/owl/0-1.png,owl,\n", "line 2: the cell of the column 'right' is empty; to take a"),
    ("path,label,right\nfirst/train/owl/0-1.png,owl,owl\n", "line 2: the right label is 'owl' too; leave out"),
    ("path,label,right\nfirst/train/owl/0-1.png,owl,emu\n", "line 2: no class is called 'emu'; there are crow, owl"),
    ("path,label,right\nfirst/train/owl/0-1.png,jay,crow\n", "line 2: this was learned as 'owl', not as 'jay'"),
    ("path,label,right\nfirst/no.png,owl,crow\n", "line 2: no such image: "),
    ("path,label,right\n", "has no rows below the names of its columns"),
    (
        "path,label,right\nfirst/train/owl/0-1.png,owl,crow\nfirst/train/owl/0-1.png,owl,wren\n",
        "line 3: this image stands in .*line 2 already; each can be corrected once",
    ),
]  # fmt: skip


def test_bad_tables_are_refused_in_one_line(tmp_path: Path) -> None:
    learner = taught({"name": "nearest-mean"}, *days(tmp_path))
    for content, said in BAD:
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises((ValueError, FileNotFoundError), match=said) as refused:
            learner.correct(tmp_path / "bad.csv")
        assert "\n" not in str(refused.value)
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "none", "no file or folder"),
        (tmp_path / "empty", "has no images; give another one"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            learner.remove([path])
    with pytest.raises(ValueError, match=r"bad.txt' is no table of corrections; give a file of rows, .csv"):
        learner.correct(tmp_path / "bad.txt")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png' cannot be read: .*; leave it out"):
        learner.remove([tmp_path / "broken.png"])


def test_what_has_no_classes_is_told_so_before_its_files_are_read(tmp_path: Path) -> None:
    for call in (lambda: pointed_at([tmp_path / "no"], "answer"), lambda: read_corrections(tmp_path / "no", "answer")):
        with pytest.raises(ValueError, match="this model writes answers and knows no classes; what it was taught"):
            call()


def test_without_a_record_nothing_is_found(tmp_path: Path) -> None:
    first, second = days(tmp_path)
    learner = taught({"name": "nearest-mean"}, first)
    learner.model.seen = Seen()  # as of a model that an older version has learned
    with pytest.raises(ValueError, match="this model has no record of what it was learned from"):
        learner.remove([first / "train" / "owl"])
    learner.learn_from(second)
    with pytest.raises(ValueError, match=r"\(as far as is recorded; of first it is not\)"):
        learner.remove([first / "train" / "owl"])
    with pytest.raises(ValueError, match=r"not recorded which samples task 'first' was .* what would be left of 'owl'"):
        learner.remove([second / "train" / "owl" / "1-0.png"])
    learner.remove([second / "train" / "jay" / "1-0.png"])


@pytest.mark.parametrize("method", EXACT[:4], ids=NAMES[:4])
def test_one_table_ends_a_class_and_takes_out_what_would_count_twice(method: dict[str, Any], tmp_path: Path) -> None:
    first = photos(tmp_path / "first", {"crow": 4, "owl": 4, "wren": 1})
    second = photos(tmp_path / "second", {"owl": 2}, seed=1)
    twice = first / "train" / "crow" / "0-0.png"
    shutil.copy(twice, second / "train" / "owl" / "same.png")
    learner = taught(method, first, second)
    (tmp_path / "wrong.csv").write_text(
        "path,label,right\nfirst/train/wren/0-0.png,wren,owl\nfirst/train/crow/0-0.png,crow,owl\n"
    )
    assert learner.correct(tmp_path / "wrong.csv", whole_classes=True).gone == ("wren",)
    shutil.move(first / "train" / "wren" / "0-0.png", first / "train" / "owl" / "moved.png")
    twice.unlink()
    for part in ("train", "test"):
        shutil.rmtree(first / part / "wren")
    alike(learner, taught(method, first, second))


def test_a_sample_that_was_learned_twice_leaves_twice(tmp_path: Path) -> None:
    first, second = days(tmp_path)
    image = first / "train" / "owl" / "0-1.png"
    learner = taught({"name": "streaming-lda"}, first)
    learner.learn_from(first, again=True)
    assert learner.remove([image]).trained == 2
    assert [record.images for record in learner.tasks] == [14, 14]
    shutil.copy(first / "train" / "owl" / "0-2.png", second / "train" / "jay" / "same.png")
    learner.learn_from(second)
    (tmp_path / "wrong.csv").write_text("path,label,right\nsecond/train/jay/same.png,jay,owl\n")
    learner.correct(tmp_path / "wrong.csv")
    counts: Tensor = learner.method.statistics.counts  # type: ignore[union-attr, assignment]
    assert counts.tolist() == [10, 10 + 5, 8, 5], "as an owl it had counted already"


def test_texts_are_corrected_and_removed(lamella: Run, tmp_path: Path) -> None:
    rows = [f"my heater number {i} is cold,heating" for i in range(6)] + [
        f"a day off in week {i},holiday" for i in range(6)
    ]
    (tmp_path / "october.csv").write_text("\n".join(["text,label", *rows]))
    assert lamella("learn", tmp_path / "model", tmp_path / "october.csv", "--method", "nearest-mean")[0] == 0
    (tmp_path / "wrong.csv").write_text("text,label,right\n  a day off in week 3 ,holiday,heating\n")
    assert "corrected 1 text (1 " in lamella("correct", tmp_path / "model", tmp_path / "wrong.csv")[1]
    assert "removed 1 text (1 " in lamella("remove", tmp_path / "model", tmp_path / "wrong.csv")[1]
    code, _, err = lamella("remove", tmp_path / "model", tmp_path / "wrong.csv")
    assert (code, "never learned by this model: the only text, first" in err) == (2, True)
    code, _, err = lamella("remove", tmp_path / "model", tmp_path / "wrong.csv", "--text", "label")
    assert (code, "never learned" in err) == (2, True)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_statistics_without_features_are_those_that_never_had_them(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (24,), generator=draws)
    labels[:8] = torch.arange(4).repeat(2)
    x = 3 * torch.randn(24, 5, generator=draws) + 2 * labels[:, None]
    out = torch.rand(24, generator=draws) < 0.5
    out[:4] = False  # a class that ends stands in another test
    right = torch.randint(0, 4, (24,), generator=draws)
    for correcting in (False, True):
        found, expected = (ClassGaussians(5, per_class=True) for _ in range(2))
        found.add(x, labels, range(4))
        found.take_out(x[out], labels[out], right[out] if correcting else None)
        kept = torch.ones(24, dtype=torch.bool) if correcting else ~out
        expected.add(x[kept], torch.where(out, right, labels)[kept], range(4))
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(
                found.state_dict()[name], tensor, rtol=1e-5, atol=1e-4 if name == "scatters" else 1e-9
            )


def test_samples_leave_one_by_one_although_nobody_else_had_some_feature() -> None:
    """As counts of words do: each text has a word of its own, whose sums are zero but for rounding once it has left."""
    for seed in range(8):
        x = torch.cat([torch.eye(12), torch.ones(12, 1)], 1) * draw(12, 1, name=str(seed)).abs()
        x, labels = x / x.norm(dim=1, keepdim=True), torch.arange(2).repeat(6)
        found, left = ClassGaussians(13), ClassGaussians(13)
        found.add(x, labels, (0, 1))
        for i in range(8):
            found.take_out(x[i : i + 1], labels[i : i + 1])
        left.add(x[8:], labels[8:], (0, 1))
        torch.testing.assert_close(found.scatter, left.scatter, rtol=0, atol=1e-12)


def test_what_was_never_in_sums_is_refused_where_it_shows() -> None:
    x, labels = draw(12, 4), torch.arange(2).repeat(6)
    found = ClassGaussians(4)
    found.add(x, labels, (0, 1))
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    for wrong, own in ((x[:1] + 9, labels[:1]), (torch.cat([x, x[:1]]), torch.cat([labels, labels[:1]]))):
        with pytest.raises(ValueError, match="not samples that were learned as these classes"):
            found.take_out(wrong, own)
    assert all(torch.equal(before[name], tensor) for name, tensor in found.state_dict().items())
    with pytest.raises(ValueError, match="cut off, so nothing can be taken out"):
        ClassGaussians(4, per_class=True, directions=2).take_out(x, labels)
    with pytest.raises(ValueError, match="k-means"):
        ClassMixtures(4, means=2).take_out(x, labels)
    ranpac = RanPAC(shallow_backbone(), projections=20, adapt="none", ridge=1.0)
    ranpac.ids, ranpac.Q = torch.tensor([0]), ranpac.project(draw(1, ranpac.backbone.width)).T
    with pytest.raises(ValueError, match="not samples that were learned as these classes"):
        ranpac.take_out(draw(1, ranpac.backbone.width, name="other"), torch.tensor([0]))


def test_a_class_with_one_image_left_has_no_scatter() -> None:
    method = StreamingLDA(shallow_backbone())
    x = draw(4, method.backbone.width)
    method.statistics.add(x, torch.tensor([0, 0, 1, 1]), (0, 1))
    method.take_out(x[[0, 2]], torch.tensor([0, 1]))
    assert not method.statistics.scatter.any()
    torch.testing.assert_close(method.statistics.means, x[[1, 3]].double())
