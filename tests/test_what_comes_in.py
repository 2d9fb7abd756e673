"""Folders, tables, archives and numbers as people have them: the right reading, or one line that says what to do."""

import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from lamella import Learner, load_source
from lamella.common.progress import lines
from lamella.data.choices import choose_some
from lamella.data.scenario import class_incremental
from lamella.data.sources.readable import load_readable
from lamella.learner.config.document import load_config, shipped_configs

EXAMPLES = int(os.environ.get("LAMELLA_EXAMPLES", "40"))
"""How many inputs of each kind are tried; by hand, thousands."""
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def photo(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (level % 256, level // 256 % 256, 7)).save(path)
    return path


def photos(folder: Path, *classes: str, count: int = 3) -> Path:
    for place, name in enumerate(classes):
        for i in range(count):
            photo(folder / name / f"{i}.png", 97 * place + 10 * i)
    return folder


def keys(path: Path, **options: Any) -> set[str]:
    source = load_source(path, test_fraction=0.0, **options)
    return {*source.train.keys, *source.test.keys}


# folders


def test_folders_within_class_folders_are_asked_about(tmp_path: Path, lamella: Run) -> None:
    for place, name in enumerate(("crow", "owl")):
        for i, side in enumerate(("left", "right")):
            for number in range(3):
                photo(tmp_path / "birds" / name / side / f"{number}.png", 120 * place + 60 * i + number)
    code, _, err = lamella("learn", tmp_path / "model", tmp_path / "birds")
    assert (code, err.count("\n")) == (2, 1)
    assert "hold no images themselves, only folders such as crow/left" in err
    assert "give the layout 'classes' if 'crow' is a class" in err
    assert not (tmp_path / "model").exists()
    code, out, _ = lamella("learn", tmp_path / "model", tmp_path / "birds", "--layout", "classes", "--no-train")
    assert (code, "new: crow, owl" in out, "read as CLASS/image" in out) == (0, True, True)
    assert load_source(tmp_path / "birds", layout="domains").class_names == ("left", "right")
    assert lamella("evaluate", tmp_path / "model", tmp_path / "birds", "--layout", "classes")[0] == 0


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Train", "Test"), ("training", "testing"), ("TRAIN", "validation")]
)
def test_parts_are_known_by_all_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    photos(tmp_path / train, "crow", "owl")
    photos(tmp_path / test, "crow", "owl", count=2)
    source = load_source(tmp_path)
    assert (source.class_names, len(source.train), len(source.test)) == (("crow", "owl"), 6, 4)
    assert source.told == (f"read as CLASS/image below {train}/, {test}/ is the test part",)


def test_a_train_folder_alone_is_no_class(tmp_path: Path) -> None:
    photos(tmp_path / "train", "crow", "owl", count=5)
    source = load_source(tmp_path)
    assert source.class_names == ("crow", "owl")
    assert source.told == ("read as CLASS/image below train/",)
    assert len(source.test) == 2


@pytest.mark.parametrize("others", [("train", "test", "extra"), ("test",), ("train", "extra"), ("train", "training")])
def test_parts_that_leave_a_doubt_are_refused(tmp_path: Path, others: tuple[str, ...]) -> None:
    for name in others:
        photos(tmp_path / name, "crow", "owl")
    with pytest.raises(
        ValueError, match="it is not clear what its folders are: give the folder that holds the classes"
    ):
        load_source(tmp_path)
    assert load_source(tmp_path, layout="classes", test_fraction=0.0).class_names == tuple(sorted(others))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert load_source(photos(tmp_path, "train", "bus")).class_names == ("bus", "train")


@pytest.mark.skipif(os.name != "posix", reason="links need no right there")
def test_links_never_multiply_images_nor_lead_out_of_a_class(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", "crow", "owl")
    whole = keys(data)
    (data / "crow" / "up").symlink_to(data)
    (data / "crow" / "beside").symlink_to(data / "owl")
    (data / "all").symlink_to(tmp_path)
    (data / "self").symlink_to(data)
    (data / "owl" / "again.png").symlink_to(data / "owl" / "0.png")
    assert {Path(key).name for key in keys(data)} <= {"0.png", "1.png", "2.png", "again.png"}
    assert len(keys(data)) == len(whole)
    elsewhere = photo(tmp_path / "store" / "far.png", 200)
    (data / "owl" / "far.png").symlink_to(elsewhere)
    assert len(keys(data)) == len(whole) + 1, "a link to a file is a file"
    (data / "wren").symlink_to(photos(tmp_path / "other", "wren") / "wren")
    assert "wren" in load_source(data).class_names, "a class folder may be a link to a folder elsewhere"


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path: Path, lamella: Run) -> None:
    composed, apart = (unicodedata.normalize(form, "Fön") for form in ("NFC", "NFD"))
    photos(tmp_path / "data", composed)
    for i in range(3):
        photo(tmp_path / "data" / apart / f"{i}.png", 130 + i)
    photos(tmp_path / "data", "owl")
    assert load_source(tmp_path / "data").class_names == (composed, "owl")
    table = tmp_path / "birds.csv"
    rows = [f"data/{n}/{i}.png,{n}" for n in (composed, apart, "owl") for i in range(3)]
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert load_source(table).class_names == (composed, "owl")
    assert lamella("learn", tmp_path / "model", tmp_path / "data", "--no-train")[0] == 0
    more = tmp_path / "more"
    photo(more / apart / "9.png", 250)
    code, out, _ = lamella("learn", tmp_path / "model", more)
    assert (code, "0 new classes" in out) == (0, True)


def test_names_that_differ_in_capitals_only_are_asked_about(tmp_path: Path, lamella: Run) -> None:
    assert lamella("learn", tmp_path / "model", photos(tmp_path / "a", "airplane", "owl"), "--no-train")[0] == 0
    code, _, err = lamella("learn", tmp_path / "model", photos(tmp_path / "b", "Airplane", count=5))
    assert (code, err.count("\n")) == (2, 1)
    assert "the classes 'airplane' and 'Airplane' differ only in capitals" in err


@pytest.mark.parametrize(
    ("name", "what"), [("air plane ", "spaces"), ("air  plane", "spaces"), ("Air plane ", "capitals and spaces")]
)
def test_names_that_differ_in_spaces_only_are_asked_about(name: str, what: str, tmp_path: Path, lamella: Run) -> None:
    assert lamella("learn", tmp_path / "model", photos(tmp_path / "a", "air plane", "owl"), "--no-train")[0] == 0
    code, _, err = lamella("learn", tmp_path / "model", photos(tmp_path / "b", name, count=5))
    assert (code, err.count("\n")) == (2, 1)
    assert "the classes 'air plane' and" in err
    assert f"differ only in {what}: if they are one class" in err


def test_without_a_held_back_image_it_says_that_confidences_mean_little(tmp_path: Path, lamella: Run) -> None:
    data = photos(tmp_path / "a", "crow", "owl", count=1)
    assert lamella("learn", tmp_path / "model", data, "--no-train")[0] == 0
    code, _, err = lamella("predict", tmp_path / "model", data / "crow")
    assert (code, err.count("\n")) == (0, 1)
    assert "has no images held back, so its confidences are not calibrated" in err
    assert lamella("learn", tmp_path / "model", photos(tmp_path / "b", "crow", "owl", count=5))[0] == 0
    assert lamella("predict", tmp_path / "model", data / "crow")[2] == ""


def test_a_window_that_cannot_be_is_refused_before_anything_is_read(tmp_path: Path, lamella: Run) -> None:
    code, out, err = lamella("learn", tmp_path / "model", photos(tmp_path / "a", "crow", "owl"), "augment.scale=[0,2]")
    assert (code, out, err.count("\n"), (tmp_path / "model").exists()) == (2, "", 1, False)
    assert "scale must be two fractions of the area" in err


def test_what_is_left_out_is_counted_and_leftovers_are_no_classes(tmp_path: Path, lamella: Run) -> None:
    data = photos(tmp_path / "data", "crow", "owl")
    photo(data / "__MACOSX" / "crow" / "x.png")
    (data / ".git").mkdir()
    (data / "crow" / "notes.txt").write_text("x")
    (data / "owl" / "film.mov").write_bytes(b"x")
    Image.new("RGB", (6, 6), (1, 2, 3)).save(data / "owl" / "camera.jfif", format="JPEG")
    source = load_source(data)
    assert source.class_names == ("crow", "owl")
    assert source.told[1] == "left out, no images: 2 files (1 .txt, 1 .mov)"
    assert "owl/camera.jfif" in keys(data)
    out = lamella("learn", tmp_path / "model", data, "--no-train")[1]
    assert "  left out, no images: 2 files" in out


# tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,label\n0.png,a,b\n", "line 1: two columns are called 'label'"),
        ("path,label,split\n0.png,a,dev\n", "line 2: the split 'dev' is unknown; use one of train, training, test"),
        ("path,label\n0.png,  \n", "line 2: the label is empty"),
        ("label\na\n", "line 1: no text column; its columns are label"),
    ],
)
def test_tables_with_faults(tmp_path: Path, text: str, message: str) -> None:
    photo(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_source(tmp_path / "t.csv")


def test_splits_of_a_table_are_those_of_folders(tmp_path: Path, lamella: Run) -> None:
    for i in range(6):
        photo(tmp_path / f"{i}.png", 30 * i)
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(6)]

    def table(*parts: str) -> Path:
        lines = [f"{row},{part}" for row, part in zip(rows, parts, strict=True)]
        (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
        return tmp_path / "t.csv"

    source = load_source(table("Train", "training", "train", "TRAIN", "val", "Validation"))
    assert (source.train.keys, source.test.keys) == (("0.png", "1.png", "2.png", "3.png"), ("4.png", "5.png"))
    source = load_source(table("train", "train", "val", "val", "test", "test"))
    assert (source.train.keys, source.test.keys) == (("0.png", "1.png"), ("4.png", "5.png"))
    code, _, err = lamella("learn", tmp_path / "model", table(*["test"] * 6))
    assert (code, err.count("\n"), "nothing to learn" in err) == (2, 1, True), err


# archives


def encoded(count: int) -> tuple[np.ndarray, np.ndarray]:
    blobs = []
    for i in range(count):
        page = io.BytesIO()
        Image.new("RGB", (6, 6), (30 * i, 9, 9)).save(page, format="PNG")
        blobs.append(page.getvalue())
    content = np.frombuffer(b"".join(blobs), dtype=np.uint8)
    return content, np.cumsum([0, *map(len, blobs)])


def archive(path: Path, **changes: Any) -> Path:
    content, offsets = encoded(6)
    whole = {"bytes": content, "offsets": offsets, "labels": np.array([0, 0, 0, 1, 1, 1])} | changes
    np.savez(path, **{key: value for key, value in whole.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"domains": np.zeros(5, int), "domain_names": np.array(["a"])},
            "domains must be a whole number for each of 6",
        ),
        ({"domains": np.full(6, 3), "domain_names": np.array(["a"])}, "domain 3 has no name; there are 1 domain_names"),
        ({"domains": np.full(6, -1), "domain_names": np.array(["a"])}, "domain -1 has no name"),
        ({"labels": np.array([0, 0, 0, 1, 1, 30_000_000])}, "label 30000000 is too large"),
        ({"labels": np.array([0, 0, 0, 1, 1, -1])}, "label -1 is below 0"),
        ({"labels": np.array([0.0, 0, 0, 1, 1, 1])}, "labels must be whole numbers"),
        ({"names": np.array([["a", "b"]])}, r"names must be texts \(n,\)"),
        ({"names": np.array([1.5, 2])}, r"names must be texts \(n,\)"),
        ({"names": np.array([b"\xff", b"b"])}, "names are not UTF-8"),
        ({"names": np.array(["", "b"])}, "has an empty name"),
        ({"is_test": np.array([1, 0, 2, 0, 0, 0])}, "is_test must be true or false for each of 6 images"),
        ({"is_test": np.array(["no"] * 6)}, "is_test must be true or false"),
        ({"offsets": np.zeros((7, 1), int)}, r"offsets must be whole numbers \(n \+ 1,\)"),
    ],
)
def test_archives_with_faults(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_source(archive(tmp_path / "x.npz", **changes))


def test_names_as_bytes_are_texts(tmp_path: Path) -> None:
    assert load_source(archive(tmp_path / "x.npz", names=np.array([b"crow", b"owl"]))).class_names == ("crow", "owl")


def test_an_archive_without_training_images_teaches_nothing(tmp_path: Path, lamella: Run) -> None:
    code, _, err = lamella("learn", tmp_path / "model", archive(tmp_path / "x.npz", is_test=np.ones(6, bool)))
    assert (code, err.count("\n"), "nothing to learn" in err) == (2, 1, True), err


# numbers and names in settings


def test_a_number_that_is_also_a_name_is_asked_about() -> None:
    names = ("7", "3", "owl")
    assert choose_some(names, ["3", "owl"], "class") == (1, 2)
    assert choose_some(names, [0, 2], "class") == (0, 2)
    with pytest.raises(
        ValueError, match="class 3 may be the one called '3' or the one at place 3, 'none'; write \"3\""
    ):
        choose_some(names, [3], "class")
    assert choose_some(("0", "1"), [1, 0], "class") == (1, 0), "both readings are the same"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_is_finite(value: str) -> None:
    for key in ("method.lr", "method.energy", "method.align.ridge", "fit.checkpoint_seconds"):
        with pytest.raises(ValueError, match=f"{key} = {value} should be a finite number"):
            load_config("digits", [f"{key}={value}"])


def test_settings_are_checked_before_an_image_is_read(
    tmp_path: Path, lamella: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr("lamella.data.sources.readable.load_source", read)
    for setting, text in (
        ("method.epochs=0", "epochs is 0"),
        ("method.lr=nan", "should be a finite number"),
        ("method.rnak=3", "unknown key 'method.rnak'"),
        ("method.adpt=first-task", "did you mean 'adapt'?"),  # of ranpac, with which models of texts start
    ):
        code, _, err = lamella("learn", tmp_path / "model", tmp_path, setting)
        assert (code, err.count("\n"), text in err) == (2, 1, True), err
    sized = ("--backbone", "test_vit", "backbone.weights=random", "backbone.size=100")
    code, _, err = lamella("learn", tmp_path / "model", tmp_path, *sized)
    assert (code, err.count("\n"), "backbone" in err) == (2, 1, True), err


def test_training_that_diverges_is_called_so(tmp_path: Path) -> None:
    learner = Learner.create(method={"name": "inflora", "lr": 1e30, "epochs": 1})
    with pytest.raises(RuntimeError, match=r"training diverged: .*give a lower learning rate, such as method\.lr=1e-4"):
        learner.learn_from(photos(tmp_path / "data", "crow", "owl", count=6))


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with lines("task 0 train", 3, seconds=0.0) as advance:
        advance(1, "epoch 1")
        advance(2)
    assert capsys.readouterr().out == "task 0 train: 1 of 3 steps, epoch 1\ntask 0 train: 3 of 3 steps\n"
    with lines("task 0 train", 3) as advance:
        advance(3)
    assert capsys.readouterr().out == ""


# anything at all: a result, or one line


def lines_of_refusal(call: Callable[[], object]) -> int:
    """Call a function, and return how many lines its refusal has; 1 where it returns. Other errors are not caught."""
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        return len(str(error).splitlines())
    return 1


def read(path: Path, **options: Any) -> None:
    """Read data, divide them and cut them into a task."""
    source = load_readable(path, **options).divided()
    if len(source.train) and len(source.test):
        class_incremental(source, tasks=1)


whole_numbers = arrays(st.sampled_from([np.int64, np.uint8, np.int8]), st.integers(0, 8))
anything = st.one_of(
    whole_numbers,
    arrays(np.float32, st.integers(0, 8)),
    arrays(np.dtype("U3"), st.integers(0, 8)),
    arrays(np.dtype("S3"), st.integers(0, 8)),
    arrays(bool, st.integers(0, 8)),
    arrays(np.uint8, st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))),
    st.just(np.array(3)),
)
KEYS = ("bytes", "offsets", "labels", "names", "wnids", "domains", "domain_names", "is_test", "x_train", "y_train")


@many
@given(st.dictionaries(st.sampled_from(KEYS), anything))
def test_any_arrays_are_read_or_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = archive(tmp_path / "x.npz", **changes)
    assert lines_of_refusal(lambda: read(path)) == 1


@many
@given(
    st.fixed_dictionaries(
        {f"{x}_{part}": anything for x in "xy" for part in ("train", "test")}, optional={"names": anything}
    )
)
def test_any_pixels_are_read_or_refused(tmp_path: Path, given_arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "x.npz", **given_arrays)
    assert lines_of_refusal(lambda: read(tmp_path / "x.npz")) == 1


cells = st.one_of(
    st.sampled_from(["0.png", "1.png", "2.png", "none.png", "a", "b", "train", "Test", "val", ""]),
    st.text(st.characters(codec="utf-8"), max_size=4),
)


@many
@given(
    st.lists(st.sampled_from(["path", "label", "split", "domain", "", "Path"]), max_size=5),
    st.lists(st.lists(cells, max_size=5), max_size=6),
    st.sampled_from([",", "\t", ";"]),
)
def test_any_table_is_read_or_refused(tmp_path: Path, header: list[str], rows: list[list[str]], comma: str) -> None:
    for i in range(3):
        photo(tmp_path / f"{i}.png", 50 * i)
    text = "\n".join(comma.join(row) for row in (header, *rows))
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert lines_of_refusal(lambda: read(tmp_path / "t.csv")) == 1


NAMES = ("train", "Test", "val", "crow", "Crow", "owl", "__MACOSX", "é", "é")
FILES = ("0.png", "1.png", "broken.jpg", "notes.txt", "empty.webp")


@many
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(NAMES), max_size=3), st.sampled_from(FILES)), max_size=12),
    st.sampled_from(["auto", "classes", "domains"]),
)
def test_any_tree_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[list[str], str]], layout: str
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for number, (folders, file) in enumerate(places):
        path = root.joinpath(*folders, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".png"):
            photo(path, number)
        else:
            path.write_bytes(b"" if file.startswith("empty") else b"x")
    assert lines_of_refusal(lambda: read(root, layout=layout)) == 1


numbers = st.one_of(
    st.integers(-3, 3), st.floats(allow_nan=True), st.sampled_from([10**9, -(10**9), 1e-300, True, "x", [], [1, 2]])
)
PATHS = sorted(
    {f"{section}.{key}" for section in ("scenario", "backbone", "method", "augment", "fit", "run") for key in
     load_config("digits")[section]}
)  # fmt: skip


@many
@given(st.sampled_from(PATHS), numbers, st.sampled_from(sorted(shipped_configs())))
def test_any_value_of_a_setting_is_taken_or_refused(path: str, value: Any, config: str) -> None:
    text = str(value).lower() if isinstance(value, bool | float) else repr(value).replace("'", '"')
    assert lines_of_refusal(lambda: load_config(config, [f"{path}={text}"])) == 1
