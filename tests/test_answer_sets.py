"""Named data sets of answers, labels that are answers, and which files hold answers."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lamella.data.answers import AnswerSet, Turn
from lamella.data.scenario import dataset_incremental
from lamella.data.sources.answer_sets import SUPERNI
from lamella.data.sources.load import load_source
from lamella.learner.config.document import load_config


def archive(path: Path, **files: Any) -> None:
    with tarfile.open(path, "w:xz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def task(*rows: tuple[str, Any]) -> dict[str, Any]:
    return {
        "definition": "Say it. ",
        "instances": [{"id": f"{i}", "input": x, "output": y} for i, (x, y) in enumerate(rows)],
    }


def items(data: Any) -> AnswerSet:
    assert isinstance(data, AnswerSet)
    return data


def test_a_task_of_superni_has_its_parts_references_and_choices(tmp_path: Path) -> None:
    archive(
        tmp_path / "superni15.tar.xz",
        **{
            "superni15/task363_sst2_polarity_classification/train.json": task(
                ("good", ["POS"]), ("bad ", ["NEG", "no"]), ("asked twice", "POS"), ("nothing", [" "])
            ),
            "superni15/task363_sst2_polarity_classification/test.json": task(
                ("fine", " POS"), ("asked twice", ["NEG"])
            ),
        },
    )
    found = load_source("superni/task363", root=tmp_path)
    assert (found.name, found.class_names) == ("task363_sst2_polarity_classification", ())
    train, test = items(found.train).items, items(found.test).items
    assert [answer.prompt for answer in train] == [(Turn("user", f"Say it.\n\n{x}"),) for x in ("good", "bad")]
    assert [(answer.response, answer.references) for answer in train] == [("POS", ()), ("NEG", ("no",))]
    assert [answer.response for answer in test] == ["POS", "NEG"]
    assert {answer.choices for answer in (*train, *test)} == {("NEG", "POS")}
    assert found.told == ("left out of training, because the test part asks the same: 1",)
    assert [(one.key, one.reason) for one in found.unreadable] == [("train.json, row 4", "the response is empty")]
    assert load_source(f"superni/{SUPERNI[1]}", root=tmp_path).train.keys == found.train.keys
    with pytest.raises(ValueError, match="no data set is called 'superni/task36'; did you mean 'task363' or 'task639'"):
        load_source("superni/task36", root=tmp_path)
    with pytest.raises(ValueError, match="has no file superni15/task591"):
        load_source("superni/task591", root=tmp_path)


def test_labels_of_texts_are_answers_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"label": label, "sentence": f"Text: {i} {label}"} for label in ("yes", "no") for i in range(5)]
    content = {"labels": ["yes", "no"], "train": rows, "test": rows[:1] and [{"label": "no", "sentence": "Text: new"}]}
    archive(
        tmp_path / "cl_benchmark.tar.xz", **{f"CL_Benchmark/NLI/CB/{part}.json": of for part, of in content.items()}
    )
    found = load_source("olora/cb", root=tmp_path, samples="answers")
    (answer,) = items(found.test).items
    assert (answer.prompt, answer.response) == ((Turn("user", "Text: new"),), "no")
    assert answer.choices == ("yes", "no")
    assert (len(found.train), found.class_names, found.name) == (10, (), "cb")
    assert load_source("olora/cb", root=tmp_path).train.noun == "text"


def test_the_columns_of_a_file_say_whether_it_holds_answers(tmp_path: Path) -> None:
    def kind(content: str, **options: str) -> str:
        (tmp_path / "rows.csv").write_text(content)
        return load_source(tmp_path / "rows.csv", **options).train.noun

    assert kind("prompt,response\na,b\nc,d\n") == "answer"
    assert kind("text,label\na,x\nb,y\nc,x\nd,y\n") == "text"
    assert kind("question,text,label\nq,a,x\nq,b,y\nq,c,x\nq,d,y\n") == "text", "a question may have a label"
    assert kind("text\na\nb\n", samples="answers") == "answer"
    with pytest.raises(ValueError, match="no label column"):
        kind("text\na\nb\n")
    with pytest.raises(ValueError, match="no column of answers; rows need prompt and response"):
        kind("name\na\nb\n", samples="answers")


def test_choices_stand_beside_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": p, "response": "b", "choices": ["b", "c"]} for p in "xy"]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert {answer.choices for answer in items(load_source(file).train).items} == {("b", "c")}
    file.write_text(json.dumps({"prompt": "x", "response": "b", "choices": ["b", "b"]}))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: a choice comes twice"):
        load_source(file)
    file.write_text(json.dumps({"prompt": "x", "response": "b", "choices": "b"}))
    with pytest.raises(ValueError, match="the choices are a text, not a list of texts; write them as JSON"):
        load_source(file)


def test_so_many_rows_are_kept_of_each_part(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "{i}", "response": "a"}}\n' for i in range(20)))
    whole, kept = load_source(file), load_source(file, train_rows=5, test_rows=3)
    assert (len(kept.train), len(kept.test)) == (5, 3)
    assert set(kept.train.keys) < set(whole.train.keys)
    assert set(kept.test.keys) < set(whole.test.keys)
    assert load_source(file, train_rows=5).train.keys == kept.train.keys
    assert len(load_source(file, train_rows=99).train) == 16
    for option in ("train_rows", "test_rows"):
        with pytest.raises(ValueError, match=f"{option} = 0 leaves rows without answers; keep 1 or more"):
            load_source(file, **{option: 0})


def test_answers_to_one_prompt_are_in_one_part(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "{i % 10}", "response": "{i}"}}\n' for i in range(40)))
    stream = dataset_incremental([load_source(file)], validation=0.25)
    held = stream[0].validation
    assert held is not None
    prompts = [{answer.prompt for answer in items(part).items} for part in (stream[0].train, held, stream.test(0))]
    assert [len(some) for some in prompts] == [6, 2, 2]
    assert len(set().union(*prompts)) == 10


def test_streams_of_answers_name_what_is_at_hand(real_data: Path) -> None:
    assert set(load_config("superni15")["scenario"]["sources"]) == {f"superni/{t.partition('_')[0]}" for t in SUPERNI}
    for number in (1, 4):
        own, other = (load_config(f"olora-{kind}-{number}")["scenario"] for kind in ("order", "labels"))
        assert (own["sources"], own["samples"]) == (other["sources"], "answers")
    for name, train, test, choices in (("task591", 1000, 100, 0), ("task875", 1000, 100, 6), ("task1590", 126, 16, 0)):
        found = load_source(f"superni/{name}", root=real_data)
        assert (len(found.train), len(found.test), len(items(found.test).items[0].choices)) == (train, test, choices)
