"""`lamella predict --out`: very many images, part by part."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from colours import picture, taught_model
from conftest import Run

from lamella import Learner
from lamella.cli import predict_parts
from lamella.cli.predict_parts import read_share, write_parts
from lamella.data.keeping import content_digest, keep_readable
from lamella.data.sources.far_files import list_files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_model(tmp_path_factory.mktemp("taught"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eleven images in two folders, and one that is none."""
    for i in range(11):
        place = tmp_path / "pictures" / f"day-{i % 2}" / f"{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture("dark" if i % 3 else "bright", i))
    (tmp_path / "pictures" / "day-1" / "12.png").write_bytes(b"nothing")
    return tmp_path / "pictures"


def rows(out: Path) -> list[dict[str, str]]:
    return [row for file in sorted(out.glob("part-*.csv")) for row in csv.DictReader(file.open())]


def test_parts_have_what_is_predicted_of_all_at_once(lamella: Run, model: Path, pictures: Path, tmp_path: Path) -> None:
    code, out, err = lamella("predict", model, pictures, "--csv", "--unknown")
    whole = list(csv.DictReader(out.splitlines()))
    assert (code, len(whole)) == (1, 11)
    code, out, err = lamella("predict", model, pictures, "--unknown", "--part", 5, "--out", tmp_path / "parts")
    assert (code, out) == (1, f"wrote 3 parts to {tmp_path / 'parts'}: 11 images\n")
    assert err.splitlines()[-1] == "1 file cannot be read; the column error says why"
    found = rows(tmp_path / "parts")
    good = [{k: v for k, v in row.items() if k != "error"} for row in found if not row["error"]]
    sure = [[float(row.pop("confidence")) for row in each] for each in (good, whole)]
    assert sure[0] == pytest.approx(sure[1], rel=1e-5)  # batches of other sizes are added up in another order
    assert good == whole
    (broken,) = [row for row in found if row["error"]]
    assert (broken["path"], broken["class"]) == (str(pictures / "day-1" / "12.png"), "")


def test_the_same_command_goes_on_with_what_is_missing(
    lamella: Run, model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("predict", model, pictures, "--part", 4, "--out", tmp_path / "parts")
    written: list[Path] = []

    def stopped(file: Path, content: bytes) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file)
        file.write_bytes(content)

    with monkeypatch.context() as patched:
        patched.setattr(predict_parts, "write_atomic", stopped)
        assert lamella(*command)[0] == 130
    assert [file.name for file in written] == ["part-00000.csv", "part-00001.csv"]
    times = [file.stat().st_mtime_ns for file in written]
    code, out, _ = lamella(*command)
    assert (code, out) == (1, f"wrote 1 part to {tmp_path / 'parts'} (2 parts were there): 3 images\n")
    assert [file.stat().st_mtime_ns for file in written] == times
    assert len(rows(tmp_path / "parts")) == 12
    assert lamella(*command)[:2] == (0, f"wrote 0 parts to {tmp_path / 'parts'} (3 parts were there): 0 images\n")


def test_shares_fill_one_folder_together(model: Path, pictures: Path, tmp_path: Path) -> None:
    learner = Learner.load(model, device="cpu")
    done = [write_parts(learner, [str(pictures)], tmp_path / "two", size=3, share=(i, 2)) for i in range(2)]
    assert [(one.written, one.there) for one in done] == [(2, 0), (2, 0)]
    write_parts(learner, [str(pictures)], tmp_path / "one", size=3)
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def test_urls_are_read_too(lamella: Run, model: Path, pictures: Path, tmp_path: Path) -> None:
    import fsspec

    memory: Any = fsspec.filesystem("memory")
    for file in pictures.rglob("*.png"):
        memory.pipe(f"/photos/{file.relative_to(pictures).as_posix()}", file.read_bytes())
    memory.pipe("/photos/notes.txt", b"no image")
    code, _, _ = lamella("predict", model, "memory://photos", "--json", "--part", 5, "--out", tmp_path / "far")
    assert code == 1
    lines = [json.loads(line) for f in sorted((tmp_path / "far").glob("*.jsonl")) for line in f.open()]
    code, _, _ = lamella("predict", model, pictures, "--json", "--part", 5, "--out", tmp_path / "near")
    near = [json.loads(line) for f in sorted((tmp_path / "near").glob("*.jsonl")) for line in f.open()]
    same = [(row.get("classes"), row["path"].split("/")[-2:]) for row in near]
    assert [(row.get("classes"), row["path"].split("/")[-2:]) for row in lines] == same
    assert all(row["path"].startswith("memory://") for row in lines)
    far = list_files("memory://photos")
    memory.rm("/photos/day-0/00.png")
    gone = keep_readable(far.some(far.names[:2]))
    assert [file.key for file in gone.unreadable] == ["0"], "what is gone meanwhile is named, and the others are read"
    code, _, err = lamella("predict", model, "memory://nowhere", "--out", tmp_path / "no")
    assert (code, err) == (2, "lamella: no images at 'memory://nowhere'\n")
    code, _, err = lamella("predict", model, "strange://a", "--out", tmp_path / "no")
    assert code == 2
    assert "'strange://a' cannot be read by fsspec" in err


def test_files_at_urls_may_have_any_names() -> None:
    """A name may look like a pattern of others; files that are hidden are no images here either."""
    import fsspec

    memory: Any = fsspec.filesystem("memory")
    for i, name in enumerate(("a1", "a[1]", "b*", "c?", "d#1", "._a1")):
        memory.pipe(f"/odd/{name}.png", picture("dark" if i % 2 else "bright", i))
    far = list_files("memory://odd")
    assert [name.rpartition("/")[2] for name in far.names] == ["a1.png", "a[1].png", "b*.png", "c?.png", "d#1.png"]
    memory.rm_file("/odd/c?.png")
    found = keep_readable(far.some(far.names))
    assert [file.key for file in found.unreadable] == ["3"]
    contents = [memory.cat_file(memory._strip_protocol(name)) for name in far.names if "c?" not in name]
    assert found.digests.tolist() == [content_digest(content) for content in contents]


def test_shares_may_begin_at_the_same_moment(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one looks whether the folder is free, another one claims it for the same parts and fills it."""
    learner, out, look, others = Learner.load(model, device="cpu"), tmp_path / "parts", Path.iterdir, [1]
    out.mkdir()

    def after_another(self: Path) -> Iterator[Path]:
        if self == out and others:
            write_parts(learner, [str(pictures)], out, size=3, share=(others.pop(), 2))
        return look(self)

    monkeypatch.setattr(Path, "iterdir", after_another)
    assert write_parts(learner, [str(pictures)], out, size=3, share=(0, 2)).written == 2
    assert len(list(out.glob("part-*.csv"))) == 4


def test_parts_of_something_else_are_refused(lamella: Run, model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    assert lamella("predict", model, pictures, "--out", out)[0] == 1
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    other = taught_model(tmp_path / "other", "streaming-lda")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    more = pictures / "more.png"
    for command, message in (
        ((other, pictures, "--out", out), "has parts of other models than these; choose another folder for --out"),
        ((model, pictures, "--out", out, "--part", 7), "has parts of other options than these"),
        ((model, pictures / "day-0", "--out", out), "has parts of other files than these"),
        ((model, pictures, "--out", tmp_path / "full"), "is a folder with other files; choose a new one for --out"),
        ((model, pictures, "--out", tmp_path / "x", "--share", "2/2"), "--share '2/2' should be NUMBER/COUNT"),
        ((model, pictures, "--share", "0/2"), "--share belongs to --out, which writes images part by part"),
        ((model, pictures, "--part", "2"), "--part belongs to --out, which writes images part by part"),
        ((model, "--text", "a", "--out", tmp_path / "x"), "--out writes the classes of images part by part; give fold"),
        ((model, "-", "--out", tmp_path / "x"), "--out reads no paths from stdin"),
        ((model, pictures, "--text", "a", "--out", tmp_path / "x"), "--text and --column are for texts, and --out is"),
        ((model, more, "--out", tmp_path / "x"), f"no file or folder '{more}'"),
    ):
        code, _, err = lamella("predict", *command)
        assert code == 2
        assert message in err
        assert len(err.splitlines()) == 1
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", ["1", "a/b", "3/3", "-1/2", "0/0"])
def test_a_share_is_a_number_of_a_count(text: str) -> None:
    assert read_share(None) == (0, 1)
    assert read_share("2/3") == (2, 3)
    with pytest.raises(ValueError, match="should be NUMBER/COUNT"):
        read_share(text)
