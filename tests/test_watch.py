"""What comes into a watched folder or a server: whether it is proposed as a new task, and that nothing else happens."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from lamella.cli import watch as watching
from lamella.data.sources.readable import load_readable
from lamella.learner.learner import Learner, Prediction
from lamella.learner.model import load
from lamella.learner.proposals import Lookout
from lamella.learner.store.versions import load_manifest


def photos(folder: Path, counts: dict[str, int], *, seed: int = 0, levels: tuple[int, ...] = (0, 90, 180)) -> Path:
    draws = np.random.default_rng([seed, *levels])
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = draws.integers(0, 60, (12, 12, 3)) + levels[place]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{seed}-{i}.png")
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes, with 20 samples held back."""
    place = tmp_path_factory.mktemp("taught")
    photos(place / "photos", {"crow": 50, "owl": 50})
    learner = Learner.create(
        backbone={"name": "test_vit", "weights": "random", "size": 32}, method="streaming-lda", fit={"device": "cpu"}
    )
    learner.learn_from(place / "photos", folder=place / "model")
    return place / "model"


@pytest.fixture
def model(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "model"))


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what happens between looks at the folder; then watching is interrupted."""

    def between(*steps: Callable[[], object]) -> None:
        left: Iterator[Callable[[], object]] = iter(steps)

        def sleep(_: float) -> None:
            step = next(left, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        monkeypatch.setattr(watching.time, "sleep", sleep)

    return between


def nothing() -> None: ...


def test_known_classes_that_look_as_ever_are_no_task_and_new_ones_are(
    lamella: Run, model: Path, tmp_path: Path, rounds: Callable[..., None]
) -> None:
    inbox = photos(tmp_path / "inbox", {"crow": 4, "owl": 4}, seed=1)
    rounds(nothing, lambda: photos(inbox, {"jay": 3}, seed=2, levels=(180,)), nothing, nothing, nothing)
    code, out, err = lamella("learn", model, inbox, "--watch")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"watches '{inbox}'; Ctrl-C ends it"
    assert lines[1:4] == [
        f"{inbox}: 8 images that the model has not learned",
        "  more of: crow, owl",
        "  no drift in 8 images",
    ]
    assert lines[4] == f"  no new task is proposed; lamella learn {model} {inbox} learns them nevertheless"
    assert lines[5:8] == [
        f"{inbox}: 11 images that the model has not learned",
        "  new classes: jay",
        "  more of: crow, owl",
    ]
    assert "a new task is proposed: lamella learn" in lines[9]
    assert lines[-1] == "watches no longer"
    assert load_manifest(model)["version"] == 1, "it only says so"


def test_it_learns_where_that_is_asked_for(
    lamella: Run, model: Path, tmp_path: Path, rounds: Callable[..., None]
) -> None:
    inbox = photos(tmp_path / "inbox", {"crow": 4}, seed=1)
    more = {"jay": 3, "emu": 3}
    rounds(nothing, lambda: photos(inbox, more, seed=2, levels=(180, 120)), nothing, nothing, nothing)
    code, out, err = lamella("learn", model, inbox, "--watch", "--teach")
    assert code == 0, err
    assert "a new task, which is learned now" in out
    assert out.count("took ") == 1
    assert "10 images" in out, "what was left of before is learned with them"
    manifest = load_manifest(model)
    assert [record["name"] for record in manifest["tasks"]] == ["photos", "inbox"]
    assert manifest["version"] == 2


def test_files_that_are_still_copied_are_left_alone_and_faults_do_not_end_it(
    lamella: Run, model: Path, tmp_path: Path, rounds: Callable[..., None]
) -> None:
    inbox = tmp_path / "inbox"
    (inbox / "jay").mkdir(parents=True)

    def grow(i: int) -> Callable[[], object]:
        return lambda: photos(inbox, {"jay": 2}, seed=i, levels=(180,))

    rounds(grow(1), grow(2), grow(3), nothing, lambda: (inbox / "jay" / "bad.csv").touch(), nothing, nothing)
    code, out, _ = lamella("learn", model, inbox, "--watch")
    assert code == 0
    said = [line for line in out.splitlines() if "has not learned" in line]
    assert said[0] == f"{inbox}: 6 images that the model has not learned"


def test_each_table_in_the_folder_is_a_data_set(
    lamella: Run, model: Path, tmp_path: Path, rounds: Callable[..., None]
) -> None:
    pictures = photos(tmp_path / "elsewhere", {"jay": 3, "crow": 3}, seed=4)
    inbox = tmp_path / "inbox"
    inbox.mkdir()

    def put(name: str, label: str) -> None:
        rows = "".join(f"{path},{label}\n" for path in sorted((pictures / label).glob("*.png")))
        (inbox / f"{name}.csv").write_text(f"path,label\n{rows}")

    put("monday", "jay")
    broken = inbox / "broken.csv"
    rounds(nothing, lambda: put("tuesday", "crow"), nothing, lambda: broken.write_text("x\n"), nothing, nothing)
    code, out, _ = lamella("learn", model, inbox, "--watch")
    assert code == 0
    assert f"{inbox / 'monday.csv'}: 3 images that the model has not learned\n  new classes: jay" in out
    assert f"{inbox / 'tuesday.csv'}: 3 images that the model has not learned\n  more of: crow" in out
    assert f"{inbox / 'broken.csv'}: " in out, "a fault is said in a line"
    assert out.endswith("watches no longer\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "INBOX", "--teach"], "--teach belongs to --watch"),
        (["MODEL", "INBOX", "--watch", "--name", "x"], "--watch may find many tasks, so --name cannot be given"),
        (["MODEL", "nowhere", "--watch"], "'nowhere' is no folder; --watch takes one"),
        (["none", "INBOX", "--watch"], "none"),
        (["MODEL", "INBOX", "--watch", "--method", "ranpac"], "its backbone, method and seed are fixed"),
    ],
)
def test_what_cannot_be_watched_is_said_at_once(
    lamella: Run, model: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "inbox").mkdir()
    places = {"MODEL": str(model), "INBOX": str(tmp_path / "inbox")}
    code, _, err = lamella("learn", *(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in err


def test_known_classes_in_another_light_are_proposed(model: Path, tmp_path: Path) -> None:
    """The labels are known, and only the pictures say that something is new."""
    lookout = Lookout(load(model))
    before = lookout.look(load_readable(photos(tmp_path / "same", {"crow": 20, "owl": 20}, seed=5)))
    assert not before.is_task
    other = lookout.look(load_readable(photos(tmp_path / "dark", {"crow": 40, "owl": 40}, seed=6, levels=(195, 140))))
    assert other.new == []
    assert other.alarm is lookout.alarm
    assert other.is_task
    assert "look unlike what was learned" in lookout.alarm.told("image")
    seen = lookout.alarm.seen
    lookout.look(load_readable(tmp_path / "dark"))
    assert lookout.alarm.seen == seen == 120, "no image counts twice"


def test_the_order_of_a_folder_raises_no_alarm(model: Path, tmp_path: Path) -> None:
    """One class is less typical than the other here, and folders list one after the other."""
    learner = Learner.load(model)
    sorted_ones = 0
    for seed in range(4):
        folder = photos(tmp_path / str(seed), {"crow": 60, "owl": 60}, seed=20 + seed)
        assert not Lookout(learner.model).look(load_readable(folder)).is_task
        found = learner.predict(sorted(folder.rglob("*.png")), top=1)
        sorted_ones += learner.drift_alarm().observe(p.familiarity for p in found if p.familiarity is not None)
    assert sorted_ones >= 3, "class by class it would be raised"


def test_a_learner_has_an_alarm_of_its_own(model: Path, tmp_path: Path) -> None:
    learner = Learner.load(model)
    alarm = learner.drift_alarm(every=500)
    assert alarm.held_back == learner.confidence.images == 20
    other = sorted(photos(tmp_path / "x", {"a": 60}, levels=(140,)).rglob("*.png"))
    predictions: list[Prediction] = learner.predict(other, top=1)
    assert alarm.observe(p.familiarity for p in predictions if p.familiarity is not None)
    new = Learner.create(backbone={"name": "test_vit", "weights": "random", "size": 32}, method="nearest-mean")
    with pytest.raises(ValueError, match="this model has none"):
        new.drift_alarm()


def test_a_server_says_when_it_is_asked_of_other_things(model: Path) -> None:
    pytest.importorskip("fastapi")
    import io

    from fastapi.testclient import TestClient

    from lamella.serving.app import create_app

    draws = np.random.default_rng(3)

    def picture(level: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray((draws.integers(0, 60, (12, 12, 3)) + level).astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    app = create_app(model, token="token")
    with TestClient(app) as client:

        def ask(*levels: int) -> None:
            files = [("images", (f"{i}.png", picture(level), "image/png")) for i, level in enumerate(levels)]
            assert client.post("/predict", files=files).status_code == 200

        assert client.get("/health").json()["drift"] is None
        for _ in range(5):
            ask(0, 90, 90, 0)
        drift = client.get("/health").json()["drift"]
        assert drift == {"seen": 20, "unlike": False, "since": None, "told": "no drift in 20 images"}
        assert "lamella_drift 0.0" in client.get("/metrics").text
        for _ in range(12):
            ask(140, 195, 140, 195, 140)
        drift = client.get("/health").json()["drift"]
        assert (drift["seen"], drift["unlike"]) == (80, True)
        assert 15 <= drift["since"] <= 40
        assert "teach them as a new task" in drift["told"]
        assert "lamella_drift 1.0" in client.get("/metrics").text
        kept = app.state.service.drift
        assert not [v for v in vars(kept).values() if isinstance(v, bytes | np.ndarray)]
        service = app.state.service
        Learner.load(model).save(model, what="the same again")
        until = time.monotonic() + 20
        while service.batcher.loaded.version == 1 and time.monotonic() < until:
            time.sleep(0.05)
        ask(0)
        assert client.get("/health").json()["drift"]["seen"] == 1, "another version begins anew"
