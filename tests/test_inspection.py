"""`lamella inspect` and `lamella evaluate`: the ledger, and both commands on a small model, with their mistakes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from streams import stream

from lamella.common.printable import printable
from lamella.learner.inspection.directions import Forecast, Overlap, Space
from lamella.learner.inspection.evaluation import Bin, Counted, Evaluation, Stranger
from lamella.learner.inspection.facts import Inspection, LearnedTask, inspect, origins
from lamella.learner.inspection.figures import confusion_png
from lamella.learner.inspection.pages import evaluation_page, inspection_page
from lamella.learner.inspection.text import evaluation_text, inspection_text
from lamella.learner.learner import Learner
from lamella.learner.store.versions import load_manifest, roll_back


def quick_learner() -> Learner:
    return Learner.create(
        backbone={"name": "test_vit", "weights": "random", "size": 32, "crop": 1.0},
        method={"name": "inflora", "rank": 2, "epochs": 1, "batch_size": 8, "blocks": 1},
        fit={"device": "cpu"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 has a task; 2 and 3 have another one beside it, 3 learned anew after 2 was taken back."""
    folder = tmp_path_factory.mktemp("models") / "model"
    tasks = stream(4, 2)
    learner = quick_learner()
    learner.learn(tasks[0], held_back=tasks.test(0))
    learner.save(folder)
    learner.learn(tasks[1], held_back=tasks.test(1))
    learner.save(folder)
    roll_back(folder, 1)
    again = Learner.load(folder)
    again.learn(tasks[1])
    again.save(folder)
    return folder


def test_each_task_comes_from_the_oldest_version_that_leads_here(model: Path) -> None:
    assert [o.version for o in origins(model) if o] == [1, 3], "the task of version 2 is another one of that name"
    roll_back(model, 2)
    assert [o.version for o in origins(model) if o] == [1, 2]
    roll_back(model, 3)


def test_a_task_whose_version_is_gone_has_no_date(tmp_path: Path) -> None:
    learner, tasks = quick_learner(), stream(4, 2)
    for task in (tasks[0], tasks[1]):
        learner.learn(task)
        learner.save(tmp_path / "m", keep=1)
    first, second = origins(tmp_path / "m")
    assert first is None
    assert second
    assert second.version == 2


def test_the_ledger_says_what_the_learner_recorded(model: Path) -> None:
    learner = Learner.load(model)
    found = inspect(learner.model, origins(model))
    first, second = found.tasks
    held = learner.tasks[0].held_back
    assert held is not None
    assert (first.classes, first.images, first.held_back) == (("class 0", "class 1"), 16, 8)
    assert first.accuracy == held.right / 8
    assert first.temperature == held.temperature
    assert (second.held_back, second.accuracy, second.temperature) == (None, None, None)
    assert re.fullmatch("[0-9a-f]{64}", str(first.data_sha256))
    assert first.data_sha256 != second.data_sha256
    assert first.origin
    files = (model / load_manifest(model, 1)["state"]["file"], model / "versions" / "1.json")
    assert first.origin.bytes == sum(file.stat().st_size for file in files)
    (space,) = found.spaces
    assert space.grown == (
        learner.tasks[0].directions[space.layer],
        learner.tasks[1].directions[space.layer] - learner.tasks[0].directions[space.layer],
    )
    assert sum(space.grown) == space.used
    assert found.forecast
    assert found.forecast.rank == 2


def test_a_model_of_an_older_version_is_shown_without_what_it_did_not_record(model: Path) -> None:
    learner = Learner.load(model)
    for task in learner.tasks:
        task.data_sha256, task.directions = None, {}
    found = inspect(learner.model)
    assert ([t.data_sha256 for t in found.tasks], found.forecast) == ([None, None], None)
    assert "not known, because what each task took was not recorded." in inspection_text(found)
    assert "not known, because" in inspection_page(found, "model")


class Plain(HTMLParser):
    """Tags that are there, and what could reach outside."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [str(v) for k, v in attrs if k in ("href", "src", "xlink:href") and not str(v).startswith("#")]


def read(page: str) -> Plain:
    parser = Plain()
    parser.feed(page)
    return parser


EVIL = "<b>$x_1$ & [red]crow"


def facts(**changes: Any) -> Inspection:
    tasks = [LearnedTask(EVIL, (EVIL,), 5, 3, 61.0, 7, "ab" * 32, 4, 3, 1.5, None)] * 2
    content: dict[str, Any] = {
        "settings": {"router": "arrow", "align.shrinkage": 0.3},
        "method": "color", "backbone": EVIL, "weights_sha256": "c" * 64, "classes": (EVIL, "owl"), "temperature": 2.0,
        "most_tasks": None, "parameters": {"head": 1234}, "tasks": tuple(tasks),
        "spaces": (Space("layer", 8, 3, (2, 1)),), "forecast": Forecast(6, "layer", 2, 1.0, 1),
        "overlap": Overlap((0, 1), ((1, 0.25), (0.25, 1)), 0.1),
    }  # fmt: skip
    return Inspection(**(content | changes))


def measured(classes: int = 2, **changes: Any) -> Evaluation:
    names = (EVIL, *(f"class {i}" for i in range(1, classes)))
    lines = tuple(Counted(name, 4, 3, 4, 1) for name in names)
    confusion = tuple((name, other, n) for name in names for other, n in ((name, 3), (names[0], 1)))
    content: dict[str, Any] = {
        "images": 8, "right": 6, "unknown": 2, "unknown_below": 0.05, "confidence": 0.8, "calibration_error": 0.05,
        "bins": (Bin(0, 0.5, 0, 0, 0), Bin(0.5, 1, 8, 0.75, 0.8)), "classes": lines, "tasks": lines[:1],
        "columns": names, "confusion": confusion[1:], "strangers": (Stranger(EVIL, 3, 2, EVIL),),
    }  # fmt: skip
    return Evaluation(**(content | changes))


@pytest.mark.parametrize(
    "page", [inspection_page(facts(), EVIL), evaluation_page(measured(), EVIL, EVIL)], ids=["inspect", "evaluate"]
)
def test_pages_need_no_network_and_escape_names(page: str) -> None:
    found = read(page)
    assert EVIL not in page
    assert "&lt;b&gt;$x_1$ &amp; [red]crow" in page
    assert found.outside == []
    assert found.tags.count("svg") == 2
    assert "default-src 'none'" in page


@pytest.mark.parametrize("name", ["\x1b[31mred", "\0", "\u202egpj", "\udce9"])
def test_pages_hold_no_sign_that_they_may_not(name: str) -> None:
    shown = printable(name)
    task = replace(facts().tasks[0], name=name, classes=(name,))
    inspected = inspection_page(facts(tasks=(task, task), classes=(name,)), name)
    lines = (replace(measured().classes[0], name=name),)
    counts = replace(measured(), tasks=lines, classes=lines, columns=(name,), confusion=((name, name, 3),))
    assert confusion_png(counts)
    for page in (inspected, evaluation_page(counts, name, name)):
        page.encode()
        assert (name in page, shown in page, f"{shown}</text>" in page) == (False, True, True)


def test_texts_say_the_numbers() -> None:
    text = inspection_text(facts())
    plain = " ".join(text.split())
    assert "Room for more tasks: about 6. After that new tasks change layer layer in fewer directions" in plain
    assert "what was learned before stays as it is" in plain
    assert (
        "(A straight line from what the last task took: 1.0 directions of that layer, of which 5 of 8 are free.)"
        in plain
    )
    assert "and one made with --no-train has no limit." in plain
    alone = " ".join(inspection_text(facts(tasks=facts().tasks[:1])).split())
    assert (
        "Room for more tasks: about 6, a guess from one task (of several that are alike, the first takes the most)."
        in alone
    )
    assert "--no-train" not in inspection_text(facts(), "answer"), "which trains no language model"
    assert "75.0 % of 4" in text
    assert "overlap" not in text
    text = inspection_text(facts(), verbose=True)
    assert re.search(r"│ 100 +│ 25 +│", text)
    assert f"│ {EVIL} │" in text
    assert "1 min 1 s" in text
    assert "divided by 2 for confidences" in text
    assert "settings of the method: router arrow, align.shrinkage 0.3" in text
    text = evaluation_text(measured(), "photos: all of it")
    assert "75.0 % right of 8 images (photos: all of it)" in text
    assert "expected calibration error 5.0 points (2 bins)" in text
    assert "called unknown (familiarity below 0.05): 25.0 %" in text
    assert re.search(rf"│ {re.escape(EVIL)} │ 3 +│ 66.7 +│ {re.escape(EVIL)} │", text)
    assert "no images were held back" in evaluation_text(measured(unknown_below=None), "x")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"spaces": (), "forecast": None}, "this method has no limit, because it protects no inputs"),
        ({"most_tasks": 5, "spaces": ()}, "Room for more tasks: 3. This method can learn 5 tasks in all."),
        ({"tasks": (), "forecast": None, "overlap": None}, "not known before something has been learned."),
        ({"forecast": None}, "new tasks may also use what old ones protect"),
        (
            {"forecast": Forecast(None, "layer", 2, 0.0, 1)},
            "no limit in sight, because the last task took no direction",
        ),
        (
            {"forecast": Forecast(0, "layer", 6, 1.0, 1)},
            "no full one. From now on new tasks change layer layer in fewer directions than a full branch (6)",
        ),
        ({"overlap": None}, "this method keeps no branches of single tasks"),
    ],
)
def test_what_has_no_meaning_for_a_method_is_said(changes: dict[str, Any], told: str) -> None:
    assert told in " ".join(inspection_text(facts(**changes), verbose=True).split())
    assert told.replace("'", "&#39;") in inspection_page(facts(**changes), "model")


def test_many_tasks_and_classes_are_cut_in_the_terminal_only() -> None:
    many = 40
    values = tuple(tuple(float(i == j) for i in range(many)) for j in range(many))
    long = replace(facts().tasks[0], name="day " * 20, classes=("shirt " * 20,) * 3)
    crowded = facts(tasks=(long,) * many, overlap=Overlap(tuple(range(many)), values, 0.1))
    assert max(map(len, inspection_text(crowded).splitlines())) <= 80
    text = inspection_text(crowded, verbose=True)
    assert "overlap of tasks" in text
    assert max(map(len, text.splitlines())) <= 210
    large = measured(many)
    assert "the 30 worst of 40 classes" in evaluation_text(large, "x")
    page = evaluation_page(large, "model", "x")
    assert all(f"class {i}" in page for i in range(1, many))
    assert "data:image/png" in page, "as an image, not as 1,600 rectangles"


def test_the_picture_has_a_bright_diagonal() -> None:
    from io import BytesIO

    from PIL import Image

    names = tuple(f"c{i}" for i in range(40))
    lines = tuple(Counted(name, 1, 1, 1, 0) for name in names[20:])
    right = replace(measured(), classes=lines, columns=names, confusion=tuple((name, name, 1) for name in names[20:]))
    picture = np.asarray(Image.open(BytesIO(confusion_png(right))).convert("RGB")).astype(int)
    yellow, violet = (np.abs(picture - colour).sum(2) < 30 for colour in ([253, 231, 37], [68, 1, 84]))
    assert yellow.sum() / (yellow + violet).sum() == pytest.approx(20 / 1600, rel=0.2)
    down, across = yellow.nonzero()
    assert down.min() > violet.nonzero()[0].mean(), "classes without an image have their rows too"
    assert np.corrcoef(down, across)[0, 1] > 0.99


def test_both_commands_on_photos(lamella: Run, tmp_path: Path) -> None:
    model, photos = tmp_path / "model", save_photos(tmp_path / "photos", dark=20, bright=230)
    assert lamella("learn", model, photos, "--method", "nearest-mean")[0] == 0
    code, out, err = lamella("inspect", model, "--json", "--html", tmp_path / "m.html")
    shown = json.loads(out)
    assert code == 0, err
    assert [task["name"] for task in shown["tasks"]] == ["photos"]
    assert shown["tasks"][0]["origin"]["version"] == 1
    assert shown["tasks"][0]["accuracy"] == 1
    assert (shown["spaces"], shown["forecast"], shown["overlap"]) == ([], None, None)
    assert "The overlap of tasks needs at least two tasks." in (tmp_path / "m.html").read_text()

    save_photos(tmp_path / "new", dark=24, bright=226, checked=None)  # other images than those it learned
    code, out, err = lamella("evaluate", model, tmp_path / "new", "--json", "--png", tmp_path / "c.png")
    found = json.loads(out)
    assert code == 0, err
    assert (found["part"], found["images"], found["right"]) == ("all of it", 10, 10)
    assert (found["accuracy"], found["classes"][0]["accuracy"]) == (1, 1)
    assert [stranger["name"] for stranger in found["strangers"]] == ["checked"]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = lamella("evaluate", model, photos, "--html", tmp_path / "e.html")
    assert "100.0 % right of 2 images" in out
    assert "without 8 images that the model was trained on" in out
    assert read((tmp_path / "e.html").read_text()).outside == []

    (tmp_path / "new" / "dark" / "2.png").write_bytes(b"no image")
    assert "without 1 image that cannot be read" in lamella("evaluate", model, tmp_path / "new")[1]
    (tmp_path / "empty").mkdir()
    for arguments, text in (
        (("inspect", tmp_path / "gone"), "holds no model"),
        (("inspect", model, "--html", tmp_path), "is a folder; name a file in it"),
        (("evaluate", tmp_path / "gone", photos), "holds no model"),
        (("predict", model, tmp_path / "empty"), "has no images; give another one, or image files"),
        (("evaluate", model, tmp_path / "empty"), "no class folders"),
        (("evaluate", model, tmp_path / "gone"), "no such file or folder"),
        (("evaluate", model, save_photos(tmp_path / "other", blue=40)), "none of the classes in the data was learned"),
    ):
        code, _, err = lamella(*arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert text in err


def save_photos(folder: Path, **classes: int | None) -> Path:
    """Five small images a class: of one brightness with noise, or checked."""
    from PIL import Image

    rng = np.random.default_rng(1)
    for name, brightness in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(5):
            base = 255 * (np.indices((16, 16)).sum(0) % 2)[..., None] if brightness is None else brightness
            pixels = np.clip(base + rng.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_the_weights_of_the_backbone_are_not_needed(
    lamella: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, photos = tmp_path / "model", save_photos(tmp_path / "photos", dark=20, bright=230)
    assert lamella("learn", model, photos, "--bundled", "--no-train")[0] == 0
    before = lamella("inspect", model, "--verbose")[1]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("lamella.backbones.images.load_strict", refuse)
    assert lamella("inspect", model, "--verbose") == (0, before, "")
    with pytest.raises(AssertionError, match="weights were read"):
        lamella("evaluate", model, photos)
