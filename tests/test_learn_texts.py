"""A model of texts from the command line: tables and folders in, labels out."""

import json
import shutil
import sys
from hashlib import sha256
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from conftest import Run
from PIL import Image

from lamella.cli import main
from lamella.cli.predict_inputs import asked_images, asked_texts
from lamella.data.sources.readable import load_readable
from lamella.data.sources.requests import load_requests
from lamella.data.texts import TextSet
from lamella.learner.learner import Learner


def rows_of(*classes: str, part: slice = slice(None)) -> list[tuple[str, str]]:
    """Texts of these classes with their labels."""
    source = load_requests()
    pairs = zip(source.train.texts, source.train.labels.tolist(), strict=True)
    return [(text, source.class_names[label]) for text, label in pairs if source.class_names[label] in classes][part]


def table(path: Path, *classes: str, header: str = "text,label") -> Path:
    lines = [header, *(f'"{text}",{label}' for text, label in rows_of(*classes))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def two_months(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tables, and a model that has learned them; not to be changed."""
    folder = tmp_path_factory.mktemp("support")
    october = table(folder / "october.csv", "holiday", "heating", "visa")
    november = table(folder / "november.csv", "pay slip", "mentor")
    for file in (october, november):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["lamella", "learn", str(folder / "support"), str(file)])
            patch.setattr("lamella.learner.config.new_config.TEXTS", "requests")
            with pytest.raises(SystemExit) as ended:
                main()
        assert not ended.value.code
    return folder


@pytest.fixture
def support(two_months: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed, with the tables beside it."""
    shutil.copytree(two_months, tmp_path, dirs_exist_ok=True)
    return tmp_path / "support"


def test_tables_that_arrive_one_after_the_other_become_tasks(lamella: Run, tmp_path: Path) -> None:
    file = table(tmp_path / "october.csv", "holiday", "heating")
    code, out, _ = lamella("learn", tmp_path / "support", file)
    assert code == 0
    assert "new model: ranpac on hashed-words" in out
    assert "october: 38 texts to learn from, 10 held back; 2 new classes" in out
    assert "texts are in the column 'text', labels in 'label'" in out
    assert "right on held-back texts of these classes: " in out
    assert "image" not in out


def test_no_text_is_kept(support: Path) -> None:
    written = b"".join(file.read_bytes() for file in support.rglob("*") if file.is_file())
    assert not [text for text, _ in rows_of("holiday", "mentor") if text.encode() in written]


def test_old_labels_take_more_rows_and_the_same_rows_are_refused(lamella: Run, support: Path, tmp_path: Path) -> None:
    code, _, err = lamella("learn", support, tmp_path / "october.csv")
    assert code == 2
    assert "were learned before" in err
    more = tmp_path / "december.csv"
    more.write_text("text,label\nI take the whole of Friday off,holiday\nmy leave starts on Monday,holiday\n")
    code, out, _ = lamella("learn", support, more)
    assert code == 0
    assert "more of: holiday" in out


def test_columns_are_told_where_their_names_are_unusual(lamella: Run, tmp_path: Path) -> None:
    file = table(tmp_path / "tickets.csv", "holiday", "heating", header="Body,Team")
    code, _, err = lamella("learn", tmp_path / "support", file)
    assert code == 2
    assert err.strip().endswith("no text column; its columns are Body, Team: say --text Body --label Team")
    code, out, _ = lamella("learn", tmp_path / "support", file, "--text", "Body", "--label", "Team")
    assert code == 0
    assert "new: heating, holiday" in out
    for asked in (("predict", "--text", "the radiator hisses", "--unknown"), ("evaluate", file, "--text", "Body")):
        label = ("--label", "Team") if asked[0] == "evaluate" else ()
        code, _, err = lamella(asked[0], tmp_path / "support", *asked[1:], *label)
        assert code == 0
        assert "has 10 texts held back, and below 20 none can be called unknown; teach it more texts first" in err


def test_a_text_on_the_command_line_is_named(lamella: Run, support: Path) -> None:
    asked = "do I need a visa for Oslo"
    code, out, _ = lamella("predict", support, "--text", asked, "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert (row["text"], row["path"], row["classes"][0]["name"], row["task"]) == (asked, "", "visa", "october")
    assert 0 < row["familiarity"] <= 1
    assert sum(entry["confidence"] for entry in row["classes"]) == pytest.approx(1)


def test_tables_files_and_stdin_are_named_with_their_places(
    lamella: Run, support: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "new.jsonl"
    rows.write_text('{"text": "the radiator in room twelve makes a noise"}\n{"text": " "}\n')
    note = tmp_path / "note.txt"
    note.write_text("there is a mistake in my pay for May")
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"can my manager coach me\n\n")))
    code, out, err = lamella("predict", support, rows, note, "-", "--csv")
    assert code == 1
    assert err.strip() == f"{rows}, line 2: cannot be read: it is empty"
    lines = [line.rsplit(",", 4)[0] for line in out.splitlines()]
    assert lines[0] == "text,path"
    assert lines[1] == f'the radiator in room twelve makes a noise,"{rows}, line 1",heating'.rsplit(",", 1)[0]
    assert [line.split(",")[-4] for line in out.splitlines()[1:]] == ["heating", "pay slip", "mentor"]


def test_lines_of_stdin_end_at_line_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form feed may stand within a text, and a sign that Unicode calls a line end within the name of a file."""
    odd = tmp_path / "a\x0cb\u2028c.png"
    Image.new("RGB", (4, 4)).save(odd)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(f"{odd}\r\n".encode())))
    assert asked_images(["-"]).named == [{"path": str(odd)}]
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO("one\x0ctwo\u2028three\r\n\nfour".encode())))
    assert [row["path"] for row in asked_texts(["-"], (), None).named] == ["stdin, line 1", "stdin, line 3"]


def test_nothing_to_predict_is_said_and_text_in_another_code_is_converted_on_the_way(
    lamella: Run, support: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b" \n\n")))
    code, out, err = lamella("predict", support, "-", "--csv")
    assert (code, out.split(",")[:2]) == (0, ["text", "path"])
    assert err.strip() == "no text in what was given, so nothing is predicted"
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO("a café\n".encode("latin-1"))))
    code, out, err = lamella("predict", support, "-")
    assert (code, out) == (2, "")
    assert "stdin, line 1: not UTF-8 text; convert it on the way, for example by iconv -f LATIN1" in err


def test_a_prediction_does_not_depend_on_the_other_texts(support: Path) -> None:
    learner = Learner.load(support)
    texts = [text for text, _ in rows_of("holiday", "mentor")]
    together, alone = learner.predict(texts), [learner.predict([text])[0] for text in texts]
    assert [p.classes[0] for p in together] == [p.classes[0] for p in alone]
    assert [p.confidences[0] for p in together] == pytest.approx([p.confidences[0] for p in alone], abs=1e-5)


def test_evaluate_measures_texts(lamella: Run, support: Path, tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text("text,label\ndo I need a visa for Leeds,visa\nit is far too cold here,heating\nhello,greeting\n")
    code, out, _ = lamella("evaluate", support, file)
    assert code == 0
    assert "2 texts" in out
    assert "image" not in out


def test_images_and_texts_do_not_mix(lamella: Run, support: Path, taught: Path, tmp_path: Path) -> None:
    code, _, err = lamella("learn", taught, tmp_path / "october.csv")
    assert code == 2
    assert "this model takes images, by the backbone" in err
    assert "october holds texts" in err
    code, _, err = lamella("learn", support, "digits")
    assert code == 2
    assert "this model takes texts, by the backbone hashed-words, and digits holds images" in err
    code, _, err = lamella("predict", taught, "--text", "hello")
    assert code == 2
    assert "--text and --column are for texts" in err


def test_a_path_that_is_none_says_how_a_text_is_given(lamella: Run, support: Path) -> None:
    code, _, err = lamella("predict", support, "my heating is broken")
    assert code == 2
    assert err.strip() == "lamella: no file or folder 'my heating is broken'; for a text itself use --text"


def test_versions_of_texts_are_as_those_of_images(lamella: Run, support: Path) -> None:
    assert lamella("forget", support, "november")[0] == 0
    assert [name for name in Learner.load(support).class_names.values()] == ["heating", "holiday", "visa"]
    for command in ("history", "inspect", "rollback"):
        code, out, err = lamella(command, support)
        assert code == 0, err
        assert "image" not in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nothing here"], "this model takes texts that are not empty"),
    ],
)
def test_learner_refuses_what_is_no_text(support: Path, given: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Learner.load(support).predict([*given, "  "])


def test_a_folder_of_both_kinds_is_learned_as_the_one_that_is_said(lamella: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "both" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "both" / name / f"{i}.png")
            (tmp_path / "both" / name / f"{i}.txt").write_text(f"{name} number {i}")
    code, _, err = lamella("learn", tmp_path / "m", tmp_path / "both")
    assert code == 2
    assert "--samples images or --samples texts" in err
    code, out, err = lamella("learn", tmp_path / "m", tmp_path / "both", "--samples", "texts")
    assert code == 0, err
    assert "both: 8 texts to learn from, 2 held back" in out
    code, _, err = lamella("evaluate", tmp_path / "m", tmp_path / "both", "--samples", "texts")
    assert code == 0, err


def test_rows_of_a_test_part_that_were_learned_are_counted_and_told(
    lamella: Run, support: Path, tmp_path: Path
) -> None:
    trained = Learner.load(support).model.seen.trained_on()
    both = load_readable(tmp_path / "october.csv")
    source = both.whole.train
    assert isinstance(source, TextSet)
    old = [text for text, key in zip(source.texts, source.keys, strict=True) if both.digests[key] in trained][:2]
    rows = [(f"holidays of {i} weeks", "holiday", "train") for i in range(4)] + [(t, "holiday", "test") for t in old]
    lines = ["text,label,split", *(f'"{text}",{label},{split}' for text, label, split in rows)]
    (tmp_path / "next.csv").write_text("\n".join([*lines, "one more day off,holiday,test"]) + "\n")
    code, out, err = lamella("learn", support, tmp_path / "next.csv")
    assert code == 0, err
    assert "next: 4 texts to learn from, 1 held back" in out
    assert "left out of the test part, trained on before or in this task: 2 texts" in out


def test_a_row_that_is_alone_is_told_of_in_the_singular(lamella: Run, support: Path, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\nI need a free Friday,holiday\n")
    assert lamella("learn", support, tmp_path / "one.csv")[0] == 0
    code, _, err = lamella("learn", support, tmp_path / "one.csv")
    assert code == 2
    assert "the only text of one was learned before" in err
    code, _, err = lamella("evaluate", support, tmp_path / "one.csv")
    assert code == 2
    assert "the model was trained on the only text of" in err


def test_an_unknown_field_of_a_record_names_the_file(lamella: Run, support: Path) -> None:
    pointer = json.loads((support / "lamella.json").read_text())
    file = next((support / "versions").glob(f"*{pointer['current']}.json"))
    stored = json.loads(file.read_text())
    stored["tasks"][0]["colour"] = "red"
    file.write_text(json.dumps(stored))
    pointer["versions"][str(pointer["current"])] = sha256(file.read_bytes()).hexdigest()
    (support / "lamella.json").write_text(json.dumps(pointer))
    code, _, err = lamella("predict", support, "--text", "a free day")
    assert code == 2
    assert f"'{file}': a task's record has the unknown field 'colour'; upgrade lamella" in err
