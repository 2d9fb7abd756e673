"""What `lamella learn` finds and says before it trains: unreadable files, what more images do, what it will take."""

import io
import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Run
from PIL import Image
from streams import QUICK, RESIDUAL, stream
from torch import Tensor, nn

from lamella.data.images import Files, data_sha256
from lamella.data.keeping import keep_readable
from lamella.data.sources.folders import load_folder
from lamella.data.sources.load import load_source
from lamella.data.sources.readable import load_readable
from lamella.learner import expected_costs, prepared
from lamella.learner.expected_costs import expect_costs
from lamella.learner.learner import Learner
from lamella.learner.next_task import as_next_task
from lamella.learner.records import Unread
from lamella.learner.store.versions import load_model
from lamella.methods import METHODS, Method

BAD = {
    "crow/empty.jpg": "the file is empty",
    "crow/letter.png": "not an image that Pillow knows",
    "crow/short.jpg": "image file is truncated",
    "crow/short.png": "image file is truncated",
    "owl/bomb.png": "which may be a decompression bomb",
    "owl/gone.png": "there is no such file",
}


def paint(path: Path, level: int, side: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((side, side), 40).convert("RGB").point(lambda v: (v + level) // 2).save(path)


@cache
def bomb() -> bytes:
    """A small file of 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Two classes of ten good files each, with every kind of bad file among them."""
    folder = tmp_path / "birds"
    for name, level in (("crow", 10), ("owl", 240)):
        for i in range(10):
            paint(folder / name / f"{i}.{'png' if i % 2 else 'jpg'}", level)
    (folder / "crow" / "empty.jpg").touch()
    (folder / "crow" / "letter.png").write_text("dear")
    for kind in ("jpg", "png"):
        paint(folder / "whole" / f"whole.{kind}", 0, side=200)
        content = (folder / "whole" / f"whole.{kind}").read_bytes()
        (folder / "crow" / f"short.{kind}").write_bytes(content[: len(content) // 2])
        (folder / "whole" / f"whole.{kind}").unlink()
    (folder / "whole").rmdir()
    (folder / "owl" / "bomb.png").write_bytes(bomb())
    (folder / "owl" / "gone.png").symlink_to(folder / "nowhere.png")
    return folder


def clean(folder: Path) -> Path:
    for name in BAD:
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("budget", [10_000_000, 100])
def test_every_bad_file_is_named_whether_or_not_the_set_fits_into_memory(
    birds: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    reads: list[int] = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda self, i, **o: (reads.append(i), read(self, i, **o))[1])
    whole = load_folder(birds, test_fraction=0.0).train
    kept, digests, unreadable = keep_readable(whole, budget_bytes=budget)
    assert len(digests) == len(kept)
    assert {file.key for file in unreadable} == BAD.keys()
    assert all(BAD[file.key] in file.reason for file in unreadable)
    assert sorted(reads) == list(range(26)), "each file is looked at once"
    assert isinstance(kept.storage, Files) == (budget == 100)
    expected = load_folder(clean(birds), test_fraction=0.0).train
    assert (kept.keys, kept.labels.tolist()) == (expected.keys, expected.labels.tolist())
    index = range(len(kept))
    assert all(torch.equal(a, b) for a, b in zip(kept.pixels(index), expected.pixels(index), strict=True))


def test_the_split_is_the_one_of_the_same_folder_without_the_bad_files(birds: Path) -> None:
    found = load_readable(str(birds))
    source = found.divided()
    expected = load_source(clean(birds))
    assert len(found.unreadable) == 6
    assert (source.train.keys, source.test.keys) == (expected.train.keys, expected.test.keys)
    assert load_readable(str(birds)).divided().train.keys == expected.train.keys


def test_a_given_split_stays_and_bad_files_go_from_both_parts(birds: Path, tmp_path: Path) -> None:
    files = sorted(path for path in birds.rglob("*.*") if path.name not in ("gone.png", "bomb.png"))
    table = tmp_path / "birds.csv"
    rows = [f"{path},{path.parent.name},{'test' if i % 3 == 0 else 'train'}" for i, path in enumerate(files)]
    table.write_text("\n".join(["path,label,split", *rows, f"{birds / 'owl' / '0.jpg'}x.png,ghost,test"]))
    (birds / "owl" / "0.jpgx.png").write_bytes((birds / "owl" / "1.png").read_bytes())
    found = load_readable(str(table))
    source = found.divided()
    assert len(found.unreadable) == 4
    assert len(source.train) + len(source.test) == 21
    task, held_back = as_next_task(source, Learner.create(method="nearest-mean").model)
    assert task.class_names == ("crow", "owl")
    assert set(held_back.labels.tolist()) == {0, 1}, "a class without training images is not held back either"


def test_a_class_that_is_all_unreadable_is_refused_in_one_line(lamella: Run, birds: Path, tmp_path: Path) -> None:
    for path in sorted((clean(birds) / "owl").iterdir()):
        path.write_text("")
    code, _, err = lamella("learn", tmp_path / "model", birds)
    assert (code, err.count("\n")) == (2, 1)
    assert "class 'owl' of birds has no image that can be read, of 10" in err
    assert "the file is empty" in err
    assert not (tmp_path / "model").exists()


def test_learning_names_what_it_leaves_out_and_the_ledger_says_what_was_learned(
    lamella: Run, birds: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    code, _, err = lamella("learn", model, birds, "--strict")
    assert (code, err.count("\n")) == (2, 1)
    assert "6 images of" in err
    assert not model.exists()
    code, out, err = lamella("learn", model, birds, "--method", "nearest-mean")
    assert code == 0, err
    assert "16 images to learn from, 4 held back; 2 new classes" in out
    assert "left out, cannot be read: 6 images" in out
    assert sum(f"    {name}: " in out for name in BAD) == 5
    assert "and 1 more" in out
    assert "took" in out.split("; expected: ")[1]
    record = Learner.load(model).tasks[0]
    learned = load_source(clean(birds)).train
    assert record.images == 16
    assert record.data_sha256 == data_sha256(learned, {0: "crow", 1: "owl"})
    assert record.unreadable == Unread(6, tuple(sorted(BAD)))
    assert "16 (6 unreadable)" in lamella("inspect", model)[1]
    assert json.loads(lamella("inspect", model, "--json")[1])["tasks"][0]["unreadable"] == 6
    measured = lamella("evaluate", model, birds)[1]
    assert "of 4 images (" in measured
    assert "all of it, without 16 images that the model was trained on" in measured
    code, out, _ = lamella("learn", model, birds, "--again")
    assert "0 new classes\n  more of: crow, owl; their statistics take in the new images" in out
    assert "old tasks, each when it was learned (no image is kept of them" in out
    assert record.held_back is not None
    right = record.held_back.right
    assert f"  birds: {right / 4:.1%} of 4" in out


def test_from_python_the_same_files_are_left_out_with_a_warning(birds: Path) -> None:
    learner = Learner.create(backbone={"name": "test_vit", "weights": "random", "size": 32}, method="nearest-mean")
    with pytest.warns(UserWarning, match=r"left out, cannot be read: 6 images of '.*birds'; the first is crow/"):
        record = learner.learn_from(birds)
    assert learner.tasks[0] is record
    assert record.held_back is not None
    assert (record.images, record.held_back.images) == (16, 4)
    assert record.unreadable == Unread(6, tuple(sorted(BAD)))
    learner.learn_from(clean(birds), again=True)
    assert learner.tasks[1].unreadable is None


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"name": "seq-lora"}, "learned anew from these images alone"),
        ({"name": "inflora", "align": {}}, "beside the old ones"),
        ({"name": "seq-lora", "calibrate": {}}, "learned anew from these images alone"),
        ({"name": "ranpac", "projections": 8}, "beside the old ones"),
        ({"name": "replay"}, "those that the memory has"),
    ],
)
def test_what_more_images_of_an_old_class_do_depends_on_the_method(method: dict[str, Any], text: str) -> None:
    assert text in Learner.create(method=method).method.what_more_images_do()


def test_more_images_of_an_old_class_do_what_is_said() -> None:
    """Statistics: the mean is that of both lots. Heads: the first lot's head has no say."""
    lots = [stream(2, 1, per_class=n)[0] for n in (4, 8)]
    table = {"name": "test_vit", "weights": "random", "size": 32}
    both = Learner.create(backbone=table, method="nearest-mean")
    for lot in lots:
        both.learn(lot)
    means = [Learner.create(backbone=table, method="nearest-mean") for _ in lots]
    for learner, lot in zip(means, lots, strict=True):
        learner.learn(lot)
    first, second = (learner.method.statistics.means for learner in means)
    torch.testing.assert_close(both.method.statistics.means, (4 * first + 8 * second) / 12)
    heads = Learner.create(backbone=table, method={"name": "linear-probe", "epochs": 1})
    for lot in lots:
        heads.learn(lot)
    x = torch.randn(3, 3, 32, 32)
    before = heads.logits(x)
    heads.method.heads[0].weight.data.fill_(9.0)
    assert torch.equal(heads.logits(x), before)


class Clocked(Method):
    """A method whose every step and pass takes as long as is said, by a clock of its own."""

    def __init__(self, clock: SimpleNamespace, backbone: Any) -> None:
        super().__init__()
        self.clock, self.weight = clock, nn.Parameter(torch.zeros(3), requires_grad=False)
        self.backbone = backbone

    def learn(self, task: Any, fit: Any) -> None:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            self.clock.now += 2.0 * len(y)  # seconds an image
            return (x.mean((2, 3)) * self.weight).square().sum()

        def observe(x: Tensor, y: Tensor) -> None:
            self.clock.now += 0.5 * len(y)

        fit(task.train, loss, [self.weight], epochs=7, lr=0.1, batch_size=32)
        fit.scan(task.train, observe)
        self.clock.now += 100.0  # between calls: does not depend on the images


def test_what_is_measured_is_scaled_to_all_images_and_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    learner = Learner.create(backbone={"name": "test_vit", "weights": "random", "size": 32}, method="nearest-mean")
    forward = learner.backbone.forward

    def slow(x: Tensor) -> Tensor:
        clock.now += 0.25 * len(x)
        return forward(x)

    monkeypatch.setattr(learner.backbone, "forward", slow)
    learner.model.method = Clocked(clock, learner.backbone)
    monkeypatch.setattr(expected_costs, "time", clock)
    task = stream(6, 1, per_class=50)[0]
    expected = expect_costs(learner.model, task, held_back=40)
    assert expected.seconds == pytest.approx(300 * 2.0 * 7 + 300 * 0.5 + 100 + 40 * 0.25)


@pytest.mark.parametrize("name", [*METHODS, "inflora+align", "seq-lora+calibrate"])
def test_every_method_can_be_tried(name: str) -> None:
    base, *parts = name.split("+")
    table = {"name": base, **QUICK.get(base, {"epochs": 2, "batch_size": 8}), **{part: {} for part in parts}}
    if base == "dlc":
        table["base"] = {"name": "replay", "epochs": 1}
    vit = {"name": "test_vit", "weights": "random", "size": 32}
    backbone = {"name": "resnet20", "weights": "random", "size": 32} if base in RESIDUAL else vit
    learner = Learner.create(backbone=backbone, method=table, fit={"device": "cpu"})
    expected = expect_costs(learner.model, stream(2, 1)[0], held_back=4)
    assert expected.seconds > 0


def test_an_interrupted_learning_whose_images_changed_is_given_up_with_the_reason(
    lamella: Run, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    clean(birds)

    def interrupt() -> None:
        with monkeypatch.context() as killed:
            killed.setattr(prepared, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            assert lamella("learn", model, birds, "--again")[0] == 130

    first = shutil.copytree(birds, tmp_path / "first")
    for i, path in enumerate(sorted(first.rglob("*.*"))):
        paint(path, 130 + i)
    assert lamella("learn", model, first, "--method", "nearest-mean")[0] == 0
    interrupt()
    for i, path in enumerate(sorted((birds / "owl").iterdir())):
        paint(path, 99 + i)
    code, out, _ = lamella("learn", model, birds, "--again")
    assert (code, "starts again: the content of its images has changed" in out) == (0, True)
    interrupt()
    paint(birds / "owl" / "new.png", 180)
    assert "starts again: it had other images" in lamella("learn", model, birds, "--again")[1]
    interrupt()
    assert lamella("rollback", model, "--to", 2)[0] == 0
    assert "starts again: the model is another version now" in lamella("learn", model, birds, "--again")[1]


def test_an_interrupted_learning_is_not_taken_for_stored_after_another_change_of_the_model(
    lamella: Run, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    more = tmp_path / "more"
    clean(birds).rename(more)
    for path in list(more.rglob("[5-9].*")):
        (birds / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(birds / path.parent.name / path.name)
    for data in (birds, more):
        method = () if model.exists() else ("--method", "nearest-mean")
        assert lamella("learn", model, data, *method)[0] == 0
    with monkeypatch.context() as killed:
        killed.setattr(prepared, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lamella("learn", model, birds, "--again")[0] == 130
    assert lamella("forget", model, "more")[0] == 0
    code, out, _ = lamella("learn", model, birds, "--again")
    assert (code, "stored already" in out) == (0, False)
    names = [v["tasks"] for v in json.loads(lamella("history", model, "--json")[1])]
    assert names[-1] == ["birds", "birds 2"]


TINY = ("--backbone", "test_vit", "backbone.weights=random", "backbone.size=32", "--method", "nearest-mean")


def test_odd_names_are_learned_and_said_on_one_line(lamella: Run, tmp_path: Path) -> None:
    names = ["-dash", "犬", "new\nline", "\x1b[31mred", "quote'\"d", "sp ace "]
    for i, name in enumerate(names):
        for j in range(2):
            paint(tmp_path / "odd" / name / f"bild ü {j}.png", 40 * i)
    code, out, err = lamella("learn", tmp_path / "model", tmp_path / "odd", *TINY)
    assert (code, err) == (0, "")
    assert "new: \\x1b[31mred, -dash, new\\nline, quote'\"d, sp ace , 犬\n" in out
    assert set(Learner.load(tmp_path / "model").class_names.values()) == set(names)


def test_a_name_that_is_not_utf8_is_told(lamella: Run, birds: Path, tmp_path: Path) -> None:
    try:
        (clean(birds) / "crow").rename(birds / b"caf\xe9".decode(errors="surrogateescape"))
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    code, _, err = lamella("learn", tmp_path / "model", birds)
    assert (code, err.count("\n")) == (2, 1)
    assert r"the name b'caf\xe9/0.jpg' is not UTF-8; rename the file or folder" in err


def damage(model: Path, how: str) -> None:
    state, pointer = next(model.glob("state-*")), model / "lamella.json"
    if how == "tampered":
        content = bytearray(state.read_bytes())
        content[-5] ^= 1
        state.write_bytes(content)
    elif how == "future":
        pointer.write_text(pointer.read_text().replace('"lamella": 2', '"lamella": 9'))
    else:
        {"state": state, "version": model / "versions" / "1.json"}[how].unlink()


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("tampered", "is damaged: its checksum is not the recorded one; restore it from a copy"),
        ("future", "has format 9, but this lamella reads formats up to 2; upgrade lamella"),
        ("state", "is missing, so version 1 is lost; restore the file from a copy"),
        ("version", "is missing, so version 1 is lost; restore the file from a copy"),
    ],
)
def test_a_damaged_model_is_told_and_left_alone(lamella: Run, tmp_path: Path, how: str, text: str) -> None:
    model = tmp_path / "model"
    for name in ("one", "two"):
        for i in range(2):
            paint(tmp_path / "data" / name / f"{i}.png", 50 * i)
    assert lamella("learn", model, tmp_path / "data", *TINY)[0] == 0
    damage(model, how)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    code, _, err = lamella("learn", model, tmp_path / "data")
    assert (code, err.count("\n")) == (2, 1)
    assert text in err
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_a_second_learner_is_told(lamella: Run, birds: Path, tmp_path: Path) -> None:
    from lamella.common.locks import exclusive_lock

    clean(birds)
    with exclusive_lock(tmp_path / "model", "busy"):
        code, _, err = lamella("learn", tmp_path / "model", birds, *TINY)
    assert (code, err.count("\n")) == (2, 1)
    assert err == f"lamella: another process is changing '{tmp_path / 'model'}'; wait for it to end\n"
    assert lamella("learn", tmp_path / "model", birds, *TINY)[0] == 0


def test_checkpoints_that_lost_their_note_are_nobodys(lamella: Run, birds: Path, tmp_path: Path) -> None:
    """A kill while they are cleared may leave them behind; whose images they are from, nothing tells then."""
    model, whole, settings = (
        tmp_path / "model",
        tmp_path / "whole",
        (*TINY[:-2], "--method", "seq-lora", "method.epochs=1"),
    )
    clean(birds)
    assert lamella("learn", whole, birds, *settings)[0] == 0
    others = tmp_path / "others"
    for i, name in enumerate(("crow", "owl")):
        for j in range(10):
            paint(others / name / f"{j}.{'png' if j % 2 else 'jpg'}", 90 * i)
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr(prepared, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lamella("learn", model, others, *settings)[0] == 130
    assert list((model / "learning").glob("task-0/*"))
    (model / "learning" / "what.json").unlink()
    code, out, _ = lamella("learn", model, birds, *settings)
    assert (code, "goes on" in out) == (0, False)
    first, second = (load_model(folder)[0] for folder in (model, whole))
    assert all(torch.equal(first[name], second[name]) for name in second)
