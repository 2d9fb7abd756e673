"""Sets of labelled texts: rows of files, folders, the hub, named archives; and several data sets, one a task."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lamella.data.images import TensorSet
from lamella.data.scenario import Source, class_incremental, dataset_incremental
from lamella.data.sources.load import load_source
from lamella.data.sources.readable import load_readable
from lamella.data.sources.text_sets import OLORA_SETS
from lamella.data.sources.unlabelled_texts import read_texts
from lamella.data.texts import TextSet, keys_of_texts
from lamella.learner.config.document import build_scenario, load_config

ROWS = "text,label\nopen the door,open\nshut the door,shut\nopen a window,open\nshut a window,shut\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(source: Source) -> dict[str, str]:
    """The class of each text of both parts."""
    found: dict[str, str] = {}
    for part in (source.train, source.test):
        assert isinstance(part, TextSet)
        found |= {t: source.class_names[i] for t, i in zip(part.texts, part.labels.tolist(), strict=True)}
    return found


# rows


def test_a_table_of_texts_and_labels_is_a_data_set(tmp_path: Path) -> None:
    source = load_source(write(tmp_path / "doors.csv", ROWS))
    assert (source.name, source.class_names, source.train.noun) == ("doors", ("open", "shut"), "text")
    assert (len(source.train), len(source.test)) == (2, 2)
    assert texts(source)["open a window"] == "open"
    assert class_incremental(source, tasks=2)[1].class_names == ("shut",)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_form_of_rows_gives_the_same_texts_and_the_same_split(tmp_path: Path, form: str) -> None:
    rows = [{"Query": f"ask {i} of them, please", "Intent": "ab"[i % 2], "note": "x"} for i in range(10)]
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif form in ("csv", "tsv"):
        sign = "," if form == "csv" else "\t"
        lines = [sign.join([f'"{r["Query"]}"', r["Intent"], r["note"]]) for r in rows]
        write(path, "\r\n".join([sign.join(rows[0]), *lines]))
    else:
        write(path, json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)) + "\n")
    source = load_source(path)
    assert len(texts(source)) == 10
    expected = sorted(keys_of_texts([str(row["Query"]) for row in rows]))
    assert sorted([*source.train.keys, *source.test.keys]) == expected
    assert sorted(source.test.keys) == sorted(load_source(path).test.keys)


def test_the_order_of_rows_decides_nothing(tmp_path: Path) -> None:
    lines = [f"number {i},{'ab'[i % 2]}" for i in range(20)]
    one = load_source(write(tmp_path / "one.csv", "\n".join(["text,label", *lines])))
    other = load_source(write(tmp_path / "other.csv", "\n".join(["text,label", *reversed(lines)])))
    assert set(one.test.keys) == set(other.test.keys)
    assert len(one.test) == 4


@pytest.mark.parametrize(
    ("header", "text", "label"),
    [
        ("Sentence,Category", "Sentence", "Category"),
        ("id,QUERY,class", "QUERY", "class"),
        ("sentence,text,intent,label", "text", "label"),
    ],
)
def test_columns_are_found_by_their_usual_names(tmp_path: Path, header: str, text: str, label: str) -> None:
    columns = header.split(",")
    rows = [",".join(f"{column} {i if column in (text, 'id') else i % 2}" for column in columns) for i in range(4)]
    source = load_source(write(tmp_path / "t.csv", "\n".join([header, *rows])))
    assert source.class_names == (f"{label} 0", f"{label} 1")
    assert set(texts(source)) == {f"{text} {i}" for i in range(4)}


def test_columns_of_other_names_are_asked_for_and_then_read(tmp_path: Path) -> None:
    rows = ["Subject,Body,Team", "one,the printer is broken,it", "two,I want more money,hr", "three,my mouse is,it"]
    path = write(tmp_path / "tickets.csv", "\n".join([*rows, "four,holidays in May,hr"]))
    wanted = r"tickets\.csv, line 1: no text column; its columns are Subject, Body, Team: say --text Body --label Team$"
    with pytest.raises(ValueError, match=wanted):
        load_source(path)
    source = load_source(path, text="Body", label="Team")
    assert texts(source)["I want more money"] == "hr"
    with pytest.raises(ValueError, match=r"line 1: no label column; its columns are Subject, Body, Team: say --label"):
        load_source(path, text="Body")
    with pytest.raises(ValueError, match=r"no column 'body'; did you mean 'Body'\?; .*: name one of them by --text"):
        load_source(path, text="body", label="Team")
    with pytest.raises(ValueError, match="cannot be both the texts and their labels"):
        load_source(path, text="Body", label="Body")


def test_paths_and_texts_in_one_table_are_asked_about(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    lines = [f"{i}.png,caption {i},{'ab'[i % 2]}" for i in range(4)]
    path = write(tmp_path / "both.csv", "\n".join(["path,text,label", *lines]))
    with pytest.raises(ValueError, match=r"^.*both\.csv has the columns path and text: say .* texts by --text text \("):
        load_source(path)
    assert load_source(path, text="text").train.noun == "text"
    assert load_source(path, image="path").train.noun == "image"


def test_split_id_and_domain_are_read(tmp_path: Path) -> None:
    header, parts = "id,text,label,split,domain", ("train", "val", "test", "Train")
    lines = [f"row{i},text {i},{'ab'[i % 2]},{parts[i % 4]},{'uv'[i // 4]}" for i in range(8)]
    source = load_source(write(tmp_path / "t.csv", "\n".join([header, *lines])))
    assert source.train.keys == ("row0", "row3", "row4", "row7")
    assert source.test.keys == ("row2", "row6"), "val is left alone beside test"
    assert source.domain_names == ("u", "v")
    assert source.train_domains is not None
    assert source.train_domains.tolist() == [0, 0, 1, 1]
    without = [line.replace("test", "train") for line in lines]
    assert load_source(write(tmp_path / "v.csv", "\n".join([header, *without]))).test.keys == ("row1", "row5")


def test_ids_that_come_twice_are_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,text,label\n1,one,a\n2,two,a\n1,three,b\n")
    with pytest.raises(ValueError, match=r"t\.csv, line 4: the id '1' is already that of t\.csv, line 2"):
        load_source(path)


def test_a_text_counts_once_a_label_and_two_labels_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ROWS + "open the door,open\n open the door ,shut\nshut a door,shut\n")
    source = load_source(path, test_fraction=0.0)
    assert isinstance(source.train, TextSet)
    assert source.train.texts.count("open the door") == 2
    assert torch.bincount(source.train.labels).tolist() == [2, 4]
    assert source.told[1:] == (
        "counted once: 1 text that came again under the same label",
        "under several labels, check which is right: 1 text, 'open the door' (open, shut)",
    )


def test_a_test_text_leaves_the_training_part(tmp_path: Path) -> None:
    rows = [
        ("one", "a", "train"),
        ("two", "b", "train"),
        ("three", "a", "train"),
        ("one", "a", "test"),
        ("4", "b", "test"),
    ]
    path = write(tmp_path / "t.jsonl", "\n".join(json.dumps({"text": t, "label": c, "split": s}) for t, c, s in rows))
    source = load_source(path)
    assert isinstance(source.train, TextSet)
    assert source.train.texts == ("two", "three")
    assert len(source.test) == 2
    assert source.told[-1] == "left out of training, because the test part has them: 1 text, 'one'"


def test_empty_texts_are_left_out_and_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ROWS + ",open\n\n'  ,shut\n \u00a0,shut\n")
    source = load_source(path)
    assert len(texts(source)) == 5
    assert source.unreadable == (("t.csv, line 6", "the text is empty"), ("t.csv, line 9", "the text is empty"))
    found = load_readable(path)
    assert found.unreadable == source.unreadable
    assert (len(found.whole.train), len(found.digests)) == (5, 5)
    with pytest.raises(
        ValueError, match=r"class 'mend' of u has no text that can be read, of 1: .*\(u\.csv, line 6: the"
    ):
        load_source(write(tmp_path / "u.csv", ROWS + ",mend\n"))


def test_learned_texts_are_known_again_whatever_row_they_stand_in(tmp_path: Path) -> None:
    old = load_readable(write(tmp_path / "october.csv", ROWS))
    new = load_readable(
        write(tmp_path / "november.csv", "label,text\nmend,mend it\nopen,open  the door\nopen,open the door\n")
    )
    left = new.without(set(old.pairs()))
    assert isinstance(left.whole.train, TextSet)
    assert left.whole.train.texts == ("mend it", "open  the door")
    assert left.divided().train.noun == "text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\nyes,a\ncaf\xe9,b\n", r"a\.csv, line 3: not UTF-8 text; .* iconv -f LATIN1 -t UTF-8"),
        ("a.csv", "text,label\nyes,a\n".encode("utf-16"), "line 1: not UTF-8 text; .* iconv -f UTF-16 -t UTF-8"),
        ("a.csv", b"text,label\nyes\0,a\n", "line 2: a NUL character"),
        ("a.jsonl", b'{"text": "a\\u0000b", "label": "a"}', "line 1: a NUL character in the text"),
        ("a.jsonl", b'\n{"text": "\\ud83d", "label": "b"}', r"line 2: half a character \(\\ud83d\)"),
        ("a.csv", b"text,label,label\nyes,a,b\n", "line 1: two columns are called 'label'"),
        ("a.csv", b"text,label\nyes,a\ntext,label\nno,b\n", "line 3: the names of the columns stand here once more"),
        ("a.csv", b"text,label\nyes, of course,a\n", "line 2: more cells than the 2 columns"),
        ("a.csv", b"text,label\nyes,\n", "line 2: the label is empty"),
        ("a.csv", b"text,label\n\n\"yes\nand no\",a\nno\n", "line 5: the label is empty"),
        ("a.csv", b"text,label,split\nyes,a,dev\n", "line 2: the split 'dev' is unknown; use one of train, "),
        ("a.csv", b"text,label\n", "no rows below the names of its columns"),
        ("a.csv", b"", "is empty; give a file whose first line names its columns"),
        ("a.tsv", b"text,label\nyes,a\n", "save it with tabs between the cells, not with ','"),
        ("a.csv", b"text;label\nyes;a\n", "save it with commas between the cells, not with ';'"),
        ("a.csv", b"text,label\n" + b'"' + b"x" * 140_000, "line 2: a cell has more than 131,072 characters; is"),
        ("a.csv", "text,score\n" + "\n".join(f"t{i},{i / 7}" for i in range(9)), "no label column"),
        ("a.csv", "text,label\n" + "\n".join(f"t{i},{i / 7}" for i in range(9)), "holds 9 different numbers in 9"),
        ("a.csv", b"prompt,label\nwho?,me\n", "line 1: the columns prompt are those of answers"),
        ("a.jsonl", b'{"messages": [], "label": "x"}', r"a\.jsonl: the columns messages are those of answers"),
        ("a.jsonl", b'{"text": "a", "label": "a"}\n{"text": "b",\n', r"line 2, column 14: not JSON: .*; a row is"),
        ("a.jsonl", b'{"text": "a", "label": "a"}\n["b", "b"]\n', "line 2: a list and no row"),
        ("a.jsonl", b'{"text": "a", "label": "a"}\n{"prompt": "b"}\n', "line 2: the label is empty"),
        ("a.jsonl", b'{"text": 5, "label": "a"}', "line 1: the text is int '5'; write it as a text: in quotes in JSON"),
        ("a.jsonl", b'{"text": "a", "label": ["a"]}', r"line 1: the label \"\['a'\]\" is a list of labels"),
        ("a.jsonl", b"[" * 100_000, "line 1: lists are nested too deeply"),
        ("a.jsonl", b"\n", "holds no rows"),
        ("a.json", b'{"text": "a", "label": "a"}', "holds no list of rows"),
        ("a.json", b'[{"text": "a",\n "label": }]', r"a\.json, line 2, column 11: not JSON"),
        ("a.parquet", b"PAR1", "is not a Parquet file that can be read"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not text but binary data; give a table"),
        ("a.txt", b"yes", "is not a data set; give a folder of images or texts, or a file .csv"),
    ],
)  # fmt: skip
def test_bad_rows_are_told_in_one_line_with_the_place(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=message) as caught:
        load_source(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_numbers_as_labels_are_fine(tmp_path: Path) -> None:
    source = load_source(
        write(tmp_path / "t.csv", "\ufefftext,label\n" + "\n".join(f"t{i},{i % 3 - 1}" for i in range(9)))
    )
    assert source.class_names == ("-1", "0", "1")
    stars = "\n".join(json.dumps({"text": f"t{i}", "label": i % 5}) for i in range(15))
    assert load_source(write(tmp_path / "t.jsonl", stars)).class_names == ("0", "1", "2", "3", "4")


def test_a_quote_that_swallows_rows_is_told_with_its_line(tmp_path: Path) -> None:
    lines = [f"text {i},{'ab'[i % 2]}" for i in range(300)]
    lines[7] = '"' + lines[7]
    lines[280] = lines[280].replace(",", '",')
    source = load_source(write(tmp_path / "t.csv", "\n".join(["text,label", *lines])))
    assert "line 9 of t.csv has a cell of more than 200 lines: check its quotes" in source.told


PIECES = [
    *(b"text", b"label", b"split", b"test", b"id", b"a", b"b", b"1", b"-", b'"', b",", b"\t", b"\n", b"\r\n", b"\r"),
    *(b"{", b"}", b"[", b"]", b":", b'"text"', b'"label"', b"null", b"\\ud800"),
    *(b"\xff", b"\xef\xbb\xbf", b"\0", "é\u2028".encode()),
]
CONTENT = st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENT, st.sampled_from(["csv", "tsv", "jsonl", "json"]))
@example(b'{"text\\ud800": "x"}', "jsonl")
@example(b"text,text", "csv")
@example(b"text,", "csv")
@example(b'"a\nb",c\n1,2', "csv")
@example(b'text,label\nx,"a\nb"\ny,"a\nb"\nz,"\x1b"', "csv")
def test_any_bytes_are_a_data_set_or_are_refused_in_one_line(tmp_path: Path, content: bytes, ending: str) -> None:
    path = write(tmp_path / f"rows.{ending}", content)
    try:
        source = load_source(path)
    except ValueError as fault:
        said = str(fault)
        assert "\n" not in said
        assert "\r" not in said
        said.encode()
        assert "rows" in said
    else:
        assert isinstance(source.train, TextSet)
        assert not set(source.train.keys) & set(source.test.keys)
        assert all("\n" not in line for line in source.told)


# folders


def folder(root: Path, *classes: str, count: int = 4, ending: str = "txt") -> Path:
    for name in classes:
        for i in range(count):
            write(root / name / f"{i}.{ending}", f"{root.name} {name} {i}\n")
    return root


def test_a_folder_of_text_files_is_a_data_set(tmp_path: Path) -> None:
    data = folder(tmp_path / "letters", "praise", "complaint")
    write(data / "praise" / "latin.txt", b"sch\xf6n")
    write(data / "praise" / "empty.txt", " \n")
    write(data / "praise" / "plan.doc", b"x")
    source = load_source(data)
    assert source.class_names == ("complaint", "praise")
    assert texts(source)["letters praise 0"] == "praise"
    assert (len(source.train), len(source.test)) == (6, 2)
    assert source.told == ("read as CLASS/text", "left out, no texts: 1 file (1 .doc)")
    assert [file.key for file in source.unreadable] == ["praise/empty.txt", "praise/latin.txt"]
    assert source.unreadable[1].reason.startswith("line 1: not UTF-8 text; convert the file")
    (data / "praise" / "0.txt").rename(data / "praise" / "renamed.txt")
    assert load_source(data).test.keys == source.test.keys, "a name decides nothing"


def test_text_folders_have_parts_and_domains_as_image_folders_have(tmp_path: Path) -> None:
    folder(tmp_path / "parts" / "train", "a", "b")
    folder(tmp_path / "parts" / "test", "a", "b", count=1)
    source = load_source(tmp_path / "parts")
    assert (len(source.train), len(source.test)) == (8, 2)
    assert source.told == ("read as CLASS/text below train/, test/ is the test part",)
    folder(tmp_path / "domains" / "mail", "a", "b")
    folder(tmp_path / "domains" / "chat", "a", "b")
    with pytest.raises(ValueError, match="hold no texts themselves, only folders such as chat/a"):
        load_source(tmp_path / "domains")
    assert load_source(tmp_path / "domains", layout="domains").domain_names == ("chat", "mail")
    write(tmp_path / "flat" / "0.txt", "x")
    with pytest.raises(ValueError, match="has texts that lie directly in it; every class needs a folder of its own"):
        load_source(tmp_path / "flat")


def test_a_folder_of_images_and_texts_is_asked_about(tmp_path: Path) -> None:
    data = folder(tmp_path / "both", "a", "b")
    for name in ("a", "b"):
        for i in range(3):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(data / name / f"{i}.png")
    with pytest.raises(
        ValueError, match=r"holds images and texts, such as a/0\.png and a/0\.txt: say .* --samples texts"
    ):
        load_source(data)
    assert load_source(data, samples="images").train.noun == "image"
    assert load_source(data, samples="texts").train.noun == "text"
    for i in range(3):
        (data / "b" / f"{i}.png").unlink()
    source = load_source(data)
    assert source.train.noun == "text", "only texts are in every class"
    assert source.told[1] == "left out, no texts: 3 files (3 .png)"


# the hub, and archives


def test_texts_of_the_hub_have_the_classes_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    label = datasets.ClassLabel(names=["zeta", "alpha"])
    features = datasets.Features({"utterance": datasets.Value("string"), "y": label, "title": datasets.Value("string")})
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, count in (("train", 6), ("test", 3)):
        said = [f"{split} {i}" for i in range(count - 1)] + [" "]
        rows = {"utterance": said, "y": [i % 2 for i in range(count)], "title": said}
        file = tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    source = load_source(f"hf:{tmp_path / 'set'}")
    assert source.class_names == ("zeta", "alpha")
    assert texts(source)["train 1"] == "alpha"
    assert (len(source.train), len(source.test), len(source.unreadable)) == (5, 2, 2)
    assert load_source(f"hf:{tmp_path / 'set'}", text="title").train.keys == source.train.keys
    assert load_source(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", label="y").class_names == (
        "zeta",
        "alpha",
    )
    with pytest.raises(ValueError, match="are images or texts; give one of image= and text="):
        load_source(f"hf:{tmp_path / 'set'}", text="title", image="utterance")


def archive(path: Path, **members: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_clinc150_comes_in_the_order_of_its_domains(tmp_path: Path) -> None:
    domains = {"home": ["lamp", "door"], "bank": ["card", "coin"]}
    said = {
        part: [[f"{part} {i} {k}", i] for v in domains.values() for i in v for k in range(2)]
        for part in ("train", "test")
    }
    said |= {"val": [["left alone", "lamp"]], "oos_train": [["what is this", "oos"]]}
    said["train"].append(["test lamp 0", "lamp"])
    archive(tmp_path / "text" / "clinc150.tar.xz", **{"data/data_full.json": said, "data/domains.json": domains})
    source = load_source("clinc150", root=tmp_path)
    assert source.class_names == ("lamp", "door", "card", "coin")
    assert (len(source.train), len(source.test)) == (8, 8)
    assert "left out of training, because the test part has them: 1 text, 'test lamp 0'" in source.told
    assert class_incremental(source, tasks=2)[1].class_names == ("card", "coin")


def test_an_archive_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    for name in ("clinc150", "banking77", "olora/agnews"):
        with pytest.raises(FileNotFoundError, match=rf"{name} needs the file .*\.tar\.xz .*; put it there"):
            load_source(name, root=tmp_path)
    write(tmp_path / "clinc150.tar.xz", b"no archive")
    with pytest.raises(ValueError, match=r"clinc150\.tar\.xz cannot be read as an archive"):
        load_source("clinc150", root=tmp_path)
    archive(tmp_path / "clinc150.tar.xz", **{"data/domains.json": {}})
    with pytest.raises(ValueError, match=r"has no file data/data_full\.json"):
        load_source("clinc150", root=tmp_path)
    archive(tmp_path / "clinc150.tar.xz", **{"data/domains.json": {}, "data/data_full.json": [1]})
    with pytest.raises(ValueError, match="is not CLINC150 as it was published"):
        load_source("clinc150", root=tmp_path)
    with pytest.raises(ValueError, match="no data set is called 'olora/agnew'; did you mean 'agnews'"):
        load_source("olora/agnew", root=tmp_path)


def test_a_set_of_olora_has_its_own_split_or_a_made_one(tmp_path: Path) -> None:
    def rows(part: str, *labels: str) -> list[dict[str, str]]:
        return [{"label": label, "sentence": f"Text: {part} {i} {label}"} for label in labels for i in range(5)]

    archive(
        tmp_path / "cl_benchmark_part.tar.xz",
        **{
            "CL_Benchmark/NLI/CB/labels.json": ["yes", "no"],
            "CL_Benchmark/NLI/CB/train.json": rows("train", "yes", "no"),
            "CL_Benchmark/NLI/CB/test.json": rows("test", "no", "yes", "-"),
            "CL_Benchmark/SC/yelp/labels.json": ["good", "bad"],
            "CL_Benchmark/SC/yelp/train.json": rows("train", "good", "bad"),
            "CL_Benchmark/TC/yahoo/labels.json": ["x"],
        },
    )
    own = load_source("olora/cb", root=tmp_path)
    assert (own.name, own.class_names, len(own.train), len(own.test)) == ("cb", ("yes", "no"), 10, 10)
    assert own.told == ("left out: 5 texts with a label that the set does not name ('-')",)
    made = load_source("olora/yelp", root=tmp_path)
    assert (len(made.train), len(made.test)) == (8, 2)
    assert made.told == ("the archive has a train part only: a part of it is held out for testing",)
    with pytest.raises(ValueError, match="archive of olora/yahoo has labels of it and no texts"):
        load_source("olora/yahoo", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("clinc150", 14_998, 4_500, 150), ("banking77", 9_993, 3_079, 77), ("olora/sst2", 2_000, 872, 2)],
)
def test_the_real_sets(real_data: Path, name: str, train: int, test: int, classes: int) -> None:
    source = load_source(name, root=real_data)
    assert (len(source.train), len(source.test), len(source.class_names)) == (train, test, classes)
    assert not source.unreadable


# several data sets, one a task


def test_each_data_set_of_a_list_is_a_task_with_labels_of_its_own(tmp_path: Path) -> None:
    paths = [str(folder(tmp_path / name, "good", "bad", count=5)) for name in ("films", "books")]
    document = f'[scenario]\nkind = "datasets"\nsources = {json.dumps(paths)}\nvalidation = 0.25\n[backbone]\n'
    config = write(tmp_path / "c.toml", document + 'name = "fractal-vit-micro"\n[method]\nname = "streaming-lda"\n')
    scenario = build_scenario(load_config(config))
    assert (scenario.kind, len(scenario), scenario.shared_classes) == ("datasets", 2, False)
    assert scenario.class_names == ("films: bad", "films: good", "books: bad", "books: good")
    assert scenario[1].name == "books"
    assert set(scenario[1].train.labels.tolist()) == set(scenario[1].classes) == {2, 3}
    assert len(scenario[0].train) == 6
    assert len(scenario[0].validation or ()) == len(scenario.test(0)) == 2
    assert len(scenario.joined()[0].train) == 12
    shared = build_scenario(load_config(config, ["scenario.share_labels=true", "scenario.per_class=2"]))
    assert shared.class_names == ("bad", "good")
    assert shared[1].classes == (0, 1)
    assert shared.shared_classes
    assert [len(task.train) for task in shared] == [2, 2]


def one(name: str, noun: str = "text", classes: int = 2) -> Source:
    sets = [TensorSet(torch.zeros(2, 1), torch.arange(2), [f"{part}{i}" for i in range(2)], noun=noun) for part in "ab"]
    return Source(name, *sets, tuple("xyz"[:classes]))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "there are no data sets; name at least one"),
        ([one("a"), one("a")], "two data sets are called 'a'; rename"),
        ([one("a"), one("b", "image")], "must have samples of one kind, but a has texts and b has images"),
        ([one("a"), one("b", classes=3)], "class 'z' of b has no training text"),
    ],
)
def test_data_sets_that_make_no_sequence_are_refused(sources: list[Source], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset_incremental(sources)


def test_data_sets_may_have_equal_keys() -> None:
    scenario = dataset_incremental([one("a"), one("b")], share_labels=True)
    assert scenario.joined()[0].train.keys == ("a/a0", "a/a1", "b/a0", "b/a1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("scenario.source=digits", "'scenario.source' belongs to the kinds class-incremental, .*, not to datasets"),
        (
            "scenario.kind=class-incremental",
            "'scenario.sources' belongs to the kinds datasets, not to class-incremental",
        ),
        (
            "scenario.tasks=3",
            "'scenario.tasks' belongs to the kinds class-incremental, task-incremental, online, not to datasets",
        ),
        ("scenario.sources=olora", "scenario.sources = 'olora' should be a list"),
    ],
)
def test_keys_of_other_kinds_of_scenario_are_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("olora-labels-1", [change])


@pytest.mark.parametrize("number", range(1, 7))
def test_olora_orders_name_what_is_at_hand(number: int) -> None:
    sources = load_config(f"olora-labels-{number}")["scenario"]["sources"]
    sets = {source.removeprefix("olora/") for source in sources}
    assert sets == ({"dbpedia", "amazon", "agnews"} if number < 4 else {*OLORA_SETS} - {"yahoo"})
    assert len(sources) == len(sets)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS + '"never closed,open\nanother,shut\n', "line 6: a quotation mark is never closed"),
        ('label,text\nopen,a door\nshut,"a window\nopen,a gate\n', "line 3: a quotation mark is never closed"),
        (ROWS + "a gate,\n", "line 6: the label is empty; write one, or remove the row"),
        ("text\na door\n", "no label column; its columns are text; it needs one of texts and one of labels"),
        ("my laptop does not start,device\n", "say --text .*; if line 1 is no names but the first text, put the line"),
    ],
)
def test_a_table_that_was_written_wrongly_says_what_to_do(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_source(write(tmp_path / "t.csv", content))


def test_a_last_cell_of_several_lines_is_no_open_one(tmp_path: Path) -> None:
    found = texts(load_source(write(tmp_path / "t.csv", ROWS + '"a ""gate""\r\nof iron",open\n')))
    assert found['a "gate"\r\nof iron'] == "open"


def test_what_is_not_a_number_is_an_empty_cell(tmp_path: Path) -> None:
    rows = [*({"text": f"{word} {i}", "label": word} for word in ("open", "shut") for i in range(3))]
    lines = [json.dumps(row) for row in [*rows, {"text": float("nan"), "label": "open"}]]
    source = load_source(write(tmp_path / "t.jsonl", "\n".join(lines)))
    assert [(sample.key, sample.reason) for sample in source.unreadable] == [("t.jsonl, line 7", "the text is empty")]
    with pytest.raises(ValueError, match="line 1: the label is empty"):
        load_source(write(tmp_path / "u.jsonl", '{"text": "a", "label": NaN}\n'))


def test_a_question_that_is_no_text_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1: the text is int '5'; write it as a text"):
        read_texts(write(tmp_path / "t.jsonl", '{"text": 5}\n'))
    with pytest.raises(ValueError, match="line 1: two columns are called 'text'"):
        read_texts(write(tmp_path / "two.csv", "text,text\na,b\n"))
