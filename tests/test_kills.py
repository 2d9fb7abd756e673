"""`lamella learn` killed at random moments, or on a full disk: the model is as before or as after, never else."""

import json
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from nursery import Nursery
from PIL import Image
from safetensors.torch import save_file
from streams import tiny_backbone
from torch import Tensor

from lamella.learner.learner import Learner
from lamella.learner.store.versions import MANIFEST, load_model
from lamella.training.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9 and fork are POSIX")
TINY = ("--backbone", "test_vit", "backbone.weights=random", "backbone.size=32", "fit.checkpoint_seconds=0.1")
SETTINGS = (*TINY, "--method", "seq-lora", "method.epochs=3", "method.batch_size=8", "method.rank=2")
BEFORE, AFTER = "before", "after"
STORING_SECONDS = 0.6  # on the slow disk: three files, each flushed, renamed, and its folder flushed
FEW = 3  # of thirty
Outcome = tuple[int, list[tuple[tuple[str, ...], tuple[float, ...]]]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of two classes each."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for day, levels in {"first": {"dark": 20, "bright": 230}, "second": {"grey": 120, "dim": 70}}.items():
        for name, level in levels.items():
            (folder / day / name).mkdir(parents=True)
            for i in range(8):
                pixels = np.clip(level + draw.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / day / name / f"{i}.png")
    return folder


def outcome(model: Path, photos: Path) -> Outcome:
    """How many tasks the model has learned, and what it predicts, to the last bit."""
    learner = Learner.load(model)
    images = sorted(photos.rglob("[01].png"))
    return len(learner.tasks), [(p.classes, p.confidences) for p in learner.predict(images)]


def learned(model: Path) -> dict[str, Tensor]:
    return load_model(model)[0]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Stage:
    """A model with no task or one, which is to learn the next; what it predicts before and after."""

    def __init__(self, folder: Path, photos: Path, nursery: Nursery, tasks: int) -> None:
        self.photos, self.nursery, self.tasks = photos, nursery, tasks
        self.start, self.model, whole = folder / f"start-{tasks}", folder / "model", folder / f"whole-{tasks}"
        data = [photos / "first", photos / "second"]
        self.start.mkdir()
        for i in range(tasks):
            nursery.run(["learn", self.start, data[i], *SETTINGS])
        self.words = ["learn", self.model, data[tasks], *(() if tasks else SETTINGS)]
        shutil.copytree(self.start, whole)
        nursery.run(["learn", whole, *self.words[2:]])
        self.expected = {AFTER: outcome(whole, photos)}
        if tasks:
            self.expected[BEFORE] = outcome(self.start, photos)
        self.state = learned(whole)

    def reset(self) -> None:
        shutil.rmtree(self.model, ignore_errors=True)
        shutil.copytree(self.start, self.model)

    def seconds(self, *, slow_disk: bool) -> float:
        self.reset()
        return self.nursery.run(self.words, slow_disk=slow_disk)

    def check(self) -> str:
        """Which of the two the model is; anything else fails."""
        if not self.tasks and not (self.model / MANIFEST).exists():
            with pytest.raises(FileNotFoundError, match="holds no model"):
                Learner.load(self.model)
            return BEFORE
        found = outcome(self.model, self.photos)
        assert found in self.expected.values()
        return next(when for when, expected in self.expected.items() if found == expected)

    def finish(self) -> None:
        """What comes next ends as if nothing had happened, with nothing left over."""
        if (self.model / "learning" / "what.json").exists() or self.check() == BEFORE:  # else it had ended
            self.nursery.run(self.words)
        assert self.check() == AFTER
        assert same(learned(self.model), self.state)
        assert len(json.loads((self.model / MANIFEST).read_text())["versions"]) == self.tasks + 1
        left = {path.name for path in self.model.rglob("*") if path.is_file()}
        versions = [json.loads(path.read_text()) for path in self.model.glob("versions/*.json")]
        kept = {MANIFEST, ".lock", *(f"{v['version']}.json" for v in versions), *(v["state"]["file"] for v in versions)}
        assert left == kept


def kill(stage: Stage, kills: int, seed: int, *, slow_disk: bool, storing: bool = False) -> Counter[str]:
    """Kill so many learnings, each at a random moment of its life; what the models were then, how many kills hit.

    Each is checked, whether the kill hit or came too late; how many hit is up to what else the machine has to do.

    Args:
        storing: only while the new version is stored.
    """
    draw, seen = random.Random(seed), Counter[str]()
    life = STORING_SECONDS if storing else stage.seconds(slow_disk=slow_disk)
    since = stage.model / ".state-*.part" if storing else None
    for i in range(kills):
        stage.reset()
        # One moment in each of equal parts of its life, so that a few kills cover all of it.
        after = life * (i + draw.random()) / kills
        hit = stage.nursery.kill(stage.words, after, slow_disk=slow_disk, since=since)
        life = life if hit else min(life, after)  # it had ended by then: the machine is less busy now
        seen.update([stage.check(), *["hit"] * hit])
        stage.finish()
    return seen


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    with Nursery(tmp_path) as opened:
        yield opened


@pytest.mark.slow
def test_kills_leave_the_model_as_before_or_as_after(tmp_path: Path, photos: Path, nursery: Nursery) -> None:
    seen = kill(Stage(tmp_path, photos, nursery, tasks=1), 4, 1, slow_disk=False)
    assert seen["hit"], "not all of them came too late"


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [0, 1])
@pytest.mark.parametrize(("slow_disk", "storing"), [(False, False), (True, False), (True, True)])
def test_thirty_kills_leave_the_model_as_before_or_as_after(
    tmp_path: Path, photos: Path, nursery: Nursery, tasks: int, slow_disk: bool, storing: bool
) -> None:
    """On a slow disk half of a learning's life is writing, so that kills fall into it."""
    seen = kill(Stage(tmp_path, photos, nursery, tasks), 30, tasks, slow_disk=slow_disk, storing=storing)
    print(f"{tasks} tasks before, {slow_disk=}, {storing=}: {dict(seen)}")
    assert seen["hit"] >= FEW, "kills came too late, so nothing was tried"
    assert seen[BEFORE] >= FEW


def test_what_tells_whose_checkpoints_they_are_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else a learning killed just after it was stored would be learned once more."""
    for name in ("what.json", *(f"task-{i}/train.safetensors" for i in range(6))):
        (tmp_path / "learning" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "learning" / name).touch()
    gone, unlink = list[str](), os.unlink
    monkeypatch.setattr(os, "unlink", lambda path, **options: (gone.append(Path(path).name), unlink(path, **options)))
    Checkpoints(tmp_path / "learning").clear()
    assert gone == [*["train.safetensors"] * 6, "what.json"]
    assert not (tmp_path / "learning").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a small disk of so many bytes, where this system allows it."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no file system may be mounted here")
        return place

    yield make
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


def test_a_full_disk_is_one_line_and_the_model_stays(
    lamella: Run, photos: Path, tmp_path: Path, disk: Callable[[int], Path]
) -> None:
    reference = tmp_path / "reference"
    assert lamella("learn", reference, photos / "first", *SETTINGS)[0] == 0
    size = sum(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    model = disk(size + (96 << 10)) / "model"  # enough for the first task, and for no second one
    shutil.copytree(reference, model)
    before = outcome(model, photos)
    ballast = model.parent / "ballast"
    for left in (40 << 10, 8 << 10, 0):
        ballast.write_bytes(b"\0" * max(shutil.disk_usage(model).free - left, 0))
        code, _, err = lamella("learn", model, photos / "second")
        assert (code, err.count("\n")) == (2, 1), err
        assert "No space left on device" in err
        ballast.unlink()
        assert outcome(model, photos) == before
    roomy = tmp_path / "roomy"
    shutil.copytree(model, roomy)
    assert lamella("learn", roomy, photos / "second")[0] == 0
    assert lamella("learn", reference, photos / "second")[0] == 0
    assert same(learned(roomy), learned(reference))


def test_a_model_that_lost_its_pointer_is_not_taken_for_an_interrupted_first_learning(
    lamella: Run, photos: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    assert lamella("learn", model, photos / "first", *TINY, "--method", "nearest-mean")[0] == 0
    (model / MANIFEST).unlink()
    left = sorted(model.rglob("*"))
    code, _, err = lamella("learn", model, photos / "second")
    assert (code, err.count("\n")) == (2, 1)
    assert "is no model (no lamella.json in it); choose a new folder" in err
    assert sorted(model.rglob("*")) == left


@pytest.mark.parametrize("other", [False, True])
def test_a_first_learning_killed_just_before_it_became_the_model_goes_on(
    lamella: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    """On a backbone of a file of the user's own, of which the folder holds a copy by then; or then on another one."""
    model = tmp_path / "model"
    for seed in (0, 1):
        save_file(tiny_backbone(seed).model.state_dict(), tmp_path / f"{seed}.safetensors")
    words = [*TINY[:2], "backbone.size=32", "--method", "nearest-mean"]
    first, then = (f"backbone.weights={tmp_path / f'{seed}.safetensors'}" for seed in (0, int(other)))
    with monkeypatch.context() as killed:
        killed.setattr("lamella.learner.store.versions._point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert lamella("learn", model, photos / "first", first, *words)[0] == 130
    assert len(list(model.glob("backbone-*.safetensors"))) == len(list(model.glob("state-*.safetensors"))) == 1
    code, _, err = lamella("learn", model, photos / "first", then, *words)
    assert (code, err) == (0, "")
    learner = Learner.load(model)
    assert learner.model.backbone_copy
    assert list(model.glob("backbone-*")) == [learner.model.backbone_copy], "what no version needs is swept up"


@pytest.mark.parametrize("moment", [0, 0.5, 0.7, 0.99])
def test_a_write_that_fails_is_one_line_and_learning_goes_on_with_space(
    lamella: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: float
) -> None:
    """Every file is flushed once; that flush fails at a moment of learning: 0 the first file, 1 the last."""
    counted, real = [0], os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (counted.__setitem__(0, counted[0] + 1), real(d))[1])
    model, whole = tmp_path / "model", tmp_path / "whole"
    method = (*TINY, "--method", "nearest-mean")
    assert lamella("learn", whole, photos / "first", *method)[0] == 0
    flushes, counted[0] = counted[0], 0

    def full(descriptor: int) -> None:
        counted[0] += 1
        if counted[0] == 1 + int(moment * flushes):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = lamella("learn", model, photos / "first", *method)
    hint = "the stored model is intact; free some space, and the same command resumes"
    assert (code, err) == (2, f"lamella: {model}: No space left on device; {hint}\n")
    monkeypatch.setattr(os, "fsync", real)
    assert lamella("learn", model, photos / "first", *(() if (model / MANIFEST).exists() else method))[0] == 0
    assert same(learned(model), learned(whole))
