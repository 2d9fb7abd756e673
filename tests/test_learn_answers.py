"""A model of answers from the command line: files of rows in, answers out."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from assistants import SETTINGS, answers_file, llama_folder
from conftest import Run

from lamella import Learner
from lamella.backbones.generating import Generating
from lamella.cli import main
from lamella.data.answers import Answer, AnswerSet
from lamella.data.sources.answer_rows import load_answers
from lamella.data.sources.rows import read_rows
from lamella.learner.answers.choosing import chosen
from lamella.learner.answers.costs import costs_of
from lamella.learner.answers.measuring import MeasuredAnswer, MeasuredAnswers
from lamella.learner.answers.scores import SCORES, score_answers
from lamella.learner.config.wanted import Wanted


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two files of answers, and a model that has learned the first; not to be changed."""
    place = tmp_path_factory.mktemp("assistants")
    base = llama_folder(place / "base")
    first = answers_file(place / "first.jsonl", "ab")
    answers_file(place / "second.jsonl", "xyz")
    with pytest.MonkeyPatch.context() as patch:
        command = ["lamella", "learn", place / "assistant", first, "--backbone", base, *SETTINGS]
        patch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    return place


@pytest.fixture
def place(kept: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(kept, tmp_path / "copy"))


def test_files_that_arrive_one_after_the_other_become_tasks(lamella: Run, place: Path) -> None:
    base = place / "base"
    code, out, err = lamella("learn", place / "new", place / "first.jsonl", "--backbone", base, *SETTINGS)
    assert code == 0, err
    assert f"new model: inflora on {base}\n" in out
    assert "first: 12 answers to learn from, 3 held back\n  answers are in the columns 'prompt', 'response'\n" in out
    assert "learned 12 answers\n" in out
    found = re.search(
        r"held-back answers, nats a token \(perplexity\): (\S+) \(\S+\) before, (\S+) \(\S+\) after, of 3", out
    )
    assert found
    assert float(found[2]) < 0.8 * float(found[1])
    assert "class" not in out

    code, out, err = lamella("learn", place / "assistant", place / "second.jsonl", "--device", "cpu")
    assert code == 0, err
    assert "second: 12 answers to learn from, 3 held back\n" in out
    assert "old tasks, each when it was learned (no answer is kept of them" in out
    assert re.search(r"\n  first: \S+ \(\S+\) before, \S+ \(\S+\) after, of 3\n", out)
    assert [task.name for task in Learner.load(place / "assistant", device="cpu").tasks] == ["first", "second"]
    code, out, err = lamella("generate", place / "assistant", "a1", "x1", "--max-tokens", "4", "--device", "cpu")
    assert (code, err, out.count("\n")) == (0, "", 2)


def test_no_answer_is_kept(place: Path) -> None:
    rows = [json.loads(line) for line in (place / "first.jsonl").read_text().splitlines()]
    written = b"".join(file.read_bytes() for file in (place / "assistant").rglob("*") if file.is_file())
    assert not [row for row in rows if json.dumps(row["prompt"]).encode() in written]


def test_answers_that_were_learned_are_not_learned_again(lamella: Run, place: Path) -> None:
    code, _, err = lamella("learn", place / "assistant", place / "first.jsonl", "--device", "cpu")
    assert code == 2
    assert "all 15 answers of first were learned before" in err
    file = place / "more.jsonl"
    file.write_text((place / "first.jsonl").read_text() + '{"prompt": "new", "response": "row"}\n')
    code, out, err = lamella("learn", place / "assistant", file, "--device", "cpu")
    assert code == 0, err
    assert "more: 1 answer to learn from, 0 held back\n" in out
    assert "left out, learned before: 15 answers; --again learns them once more\n" in out


def test_conversations_are_learned(lamella: Run, place: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (place / "other.jsonl").write_text(json.dumps({"messages": said}))
    code, out, err = lamella("learn", place / "assistant", place / "other.jsonl", "--device", "cpu")
    assert code == 0, err
    assert "other: 1 answer to learn from, 0 held back\n  answers are in the columns 'messages'\n" in out


def test_texts_without_labels_ask_for_labels_unless_a_language_model_is_asked_for(lamella: Run, place: Path) -> None:
    (place / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    new = [place / "new", place / "texts.jsonl", "--backbone", place / "base", *SETTINGS]
    code, _, err = lamella("learn", *new)
    assert code == 2
    assert "no label column" in err
    code, out, err = lamella("learn", *new, "--samples", "answers")
    assert code == 0, err
    assert "texts: 1 answer to learn from, 1 held back" in out
    (place / "more.jsonl").write_text('{"text": "three"}')
    code, out, err = lamella("learn", place / "new", place / "more.jsonl", "--device", "cpu")
    assert code == 0, err
    assert "more: 1 answer to learn from, 0 held back\n  answers are in the columns 'text'\n" in out


def test_the_kinds_do_not_mix(lamella: Run, place: Path, taught: Path) -> None:
    (place / "labelled.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    code, out, err = lamella("learn", place / "assistant", place / "labelled.csv", "--device", "cpu")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "this model takes answers, by the backbone" in err
    assert "and labelled holds texts; give answers, or teach a new model on a backbone that takes texts" in err
    code, _, err = lamella("learn", taught, place / "first.jsonl")
    assert (code, err.count("\n")) == (2, 1)
    assert "this model takes images" in err
    assert "and first holds answers" in err
    code, _, err = lamella("learn", place / "new", place / "first.jsonl", "--backbone", "hashed-words")
    assert (code, err.count("\n")) == (2, 1)
    assert "asks for a language model, and 'hashed-words' is none" in err
    code, _, err = lamella(
        "learn", place / "new", place / "first.jsonl", "--method", "ranpac", "--backbone", place / "base"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "method 'ranpac' needs classes" in err
    assert not (place / "new").exists()


def test_a_new_model_of_answers_starts_with_a_configuration(tmp_path: Path) -> None:
    config = Wanted().config("answer")
    assert config["backbone"]["output"] == "tokens"
    assert (config["method"]["name"], config["method"]["energy_of"]) == ("inflora", "data")
    named = Wanted(backbone="some/model", settings=("backbone.output=tokens", "method.rank=3")).config()
    assert (named["backbone"]["name"], named["method"]["rank"]) == ("some/model", 3)
    assert named["method"] == config["method"] | {"rank": 3}
    assert Wanted(backbone=str(tmp_path / "a.gguf")).config()["method"] == config["method"]


def test_what_does_not_fit_is_told(lamella: Run, place: Path) -> None:
    rows = [
        {"prompt": "x " * 100, "response": "y"},
        {"prompt": "a", "response": "b" * 80},
        {"prompt": "c", "response": ""},
    ]
    rows += [{"prompt": f"fits {i}", "response": "d"} for i in range(3)]
    (place / "long.jsonl").write_text("".join(f"{json.dumps(row | {'split': 'train'})}\n" for row in rows))
    code, out, err = lamella("learn", place / "assistant", place / "long.jsonl", "--device", "cpu")
    assert code == 0, err
    assert "left out, cannot be read: 1 answer\n    long.jsonl, line 3: the response is empty\n" in out
    record = Learner.load(place / "assistant", device="cpu").tasks[-1]
    assert record.unreadable is not None
    held = 5 - record.images - (record.unreadable.images - 1)
    assert (record.images, held) in ((3, 1), (4, 0), (3, 2)), "a fifth is held back"
    if "long.jsonl, line 2" in record.unreadable.first:
        assert "left out, too long for this model: 1 answer; give a larger backbone.max_length" in out
    if record.told:
        assert f"  {record.told[0]}\n" in out


def test_versions_of_answers_are_as_those_of_images(lamella: Run, place: Path) -> None:
    model = place / "assistant"
    assert lamella("learn", model, place / "second.jsonl", "--device", "cpu")[0] == 0
    before = Learner.load(model, version=1, device="cpu").answer(["a1"], Generating(max_tokens=8))
    code, out, _ = lamella("history", model)
    assert code == 0
    assert "learned second" in out
    code, out, err = lamella("inspect", model, "--device", "cpu")
    assert code == 0, err
    assert "2 tasks, 24 answers" in out
    assert "held back" in out
    code, out, err = lamella("rollback", model)
    assert (code, err) == (0, "")
    assert "is version 1 again, with 1 task: first" in out
    assert Learner.load(model, device="cpu").answer(["a1"], Generating(max_tokens=8)) == before
    assert lamella("rollback", model, "--to", "2")[0] == 0
    code, out, err = lamella("forget", model, "first")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot forget 'first'" in err
    assert lamella("forget", model, "second")[0] == 0
    assert Learner.load(model, device="cpu").answer(["a1"], Generating(max_tokens=8)) == before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["predict", "MODEL", "first.jsonl"], "writes answers and knows no classes; use lamella generate"),
        (
            ["export", "MODEL", "--format", "onnx", "--out", "OUT"],
            "this backbone takes answers; use --format hf, peft or adapters",
        ),
        (
            ["export", "MODEL", "--format", "timm", "--out", "OUT"],
            "this backbone takes answers; use --format hf, peft or adapters",
        ),
        (["classes", "MODEL"], "writes answers and knows no classes; lamella inspect shows what it has learned"),
        (["classes", "MODEL", "rename", "a", "b"], "writes answers and knows no classes"),
    ],
)
def test_what_needs_classes_says_so_and_what_to_do(
    lamella: Run, kept: Path, tmp_path: Path, command: list[str], said: str
) -> None:
    names = {"MODEL": kept / "assistant", "OUT": tmp_path / "out", "first.jsonl": kept / "first.jsonl"}
    code, out, err = lamella(*(names.get(word, word) for word in command))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err
    assert not (tmp_path / "out").exists()


def test_learning_from_python_holds_a_part_back(place: Path) -> None:
    learner = Learner.load(place / "assistant", device="cpu")
    record = learner.learn_from(place / "second.jsonl")
    assert record.held_back_costs is not None
    assert record.held_back_costs.answers == 3
    assert record.held_back_costs.after < record.held_back_costs.before
    with pytest.raises(ValueError, match="were learned before"):
        learner.learn_from(place / "second.jsonl")


# evaluate


def test_evaluate_measures_answers(lamella: Run, place: Path) -> None:
    test, written = answers_file(place / "test.jsonl", "abc", 3, test=3), place / "written.jsonl"
    options = ["--max-tokens", "6", "--device", "cpu"]
    code, out, err = lamella("evaluate", place / "assistant", test, *options, "--written", written, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["part"], found["answers"]) == ("its test part", 3)
    assert set(found["scores"]) == set(SCORES)
    learner = Learner.load(place / "assistant", device="cpu")
    data = load_answers(read_rows(test)).test
    assert isinstance(data, AnswerSet)
    costs = costs_of(learner.method, data, device="cpu")
    assert found["scores"]["loss"] == pytest.approx(costs.loss, rel=1e-6)
    assert found["scores"]["perplexity"] == pytest.approx(costs.perplexity, rel=1e-6)
    assert found["scores"]["bits_per_byte"] == pytest.approx(costs.bits_per_byte, rel=1e-6)
    said = learner.answer(list(data.items), Generating(max_tokens=6))
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["abc3", "abc4", "abc5"]
    assert [row["written"] for row in rows] == said
    assert [row["references"] for row in rows] == [["aaa!"], ["bbb!"], ["ccc!"]]
    own = score_answers(said, [row["references"] for row in rows])
    assert [row["scores"]["chrf"] for row in rows] == pytest.approx([score.chrf for score in own])
    assert found["scores"]["chrf"] == pytest.approx(sum(score.chrf for score in own) / 3)
    places, _ = chosen(learner.method, data.items, data.items[0].choices, device="cpu")
    assert [row["chosen"] for row in rows] == [data.items[0].choices[i] for i in places]
    assert found["scores"]["choice"] == pytest.approx(sum(i == place for i, place in enumerate(places)) / 3)


def test_evaluate_prints_a_table_of_what_can_be_measured(lamella: Run, place: Path) -> None:
    (place / "texts.jsonl").write_text('{"text": "one and two"}\n{"text": "three"}\n')
    options = ["--device", "cpu", "--samples", "answers"]
    code, out, err = lamella("evaluate", place / "assistant", place / "texts.jsonl", *options)
    assert code == 0, err
    assert out.startswith(f"2 answers ({place / 'texts.jsonl'}: all of it)\n")
    assert [word in out for word in ("Loss", "Bits a byte", "ROUGE-L", "Choice")] == [True, True, False, False]
    (place / "asked.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 2)
    more = ["--max-tokens", "0", "--choice", "b", "--choice", "cc", "--device", "cpu"]
    code, out, err = lamella("evaluate", place / "assistant", place / "asked.jsonl", *more)
    assert code == 0, err
    assert [word in out for word in ("Loss", "ROUGE-L", "Choice")] == [True, False, True]


def test_what_was_learned_is_not_measured(lamella: Run, place: Path) -> None:
    options = ["--max-tokens", "0", "--device", "cpu"]
    code, out, err = lamella("evaluate", place / "assistant", place / "first.jsonl", *options)
    assert code == 0, err
    assert out.startswith("3 answers (")
    assert "first.jsonl: all of it, without 12 answers that the model was trained on" in out
    for option in (["--html", place / "a.html"], ["--png", place / "a.png"]):
        code, _, err = lamella("evaluate", place / "assistant", place / "first.jsonl", *option)
        assert (code, err.count("\n")) == (2, 1)
        assert f"is a model of answers, and {option[0]} is for those of classes; leave it out" in err


def test_a_model_of_classes_has_no_answers_to_measure(lamella: Run, taught: Path, place: Path) -> None:
    code, _, err = lamella("evaluate", taught, "digits", "--max-tokens", "3")
    assert (code, err.count("\n")) == (2, 1)
    assert "is a model of classes, and --max-tokens is for those of answers; leave it out" in err


def test_standard_errors_are_those_of_means_and_ratios() -> None:
    def measured(nats: float, targets: int, exact: float) -> MeasuredAnswer:
        return MeasuredAnswer(Answer.to("a", "b"), nats, targets, 1, "", None, {"exact": exact})

    rows = [measured(2.0, 2, 1), measured(6.0, 2, 0), measured(4.0, 2, 0), measured(8.0, 2, 1)]
    found = MeasuredAnswers(tuple(rows), 0, ())
    assert found.scores["loss"] == 20 / 8
    assert found.scores["exact"] == 0.5
    losses = torch.tensor([1.0, 3.0, 2.0, 4.0])  # with equal numbers of tokens a ratio is a mean
    assert found.errors["loss"] == pytest.approx(float(losses.std() / 2))
    assert found.errors["exact"] == pytest.approx(float(torch.tensor([1.0, 0, 0, 1]).std() / 2))
    assert MeasuredAnswers(tuple(rows[:1]), 0, ()).errors == {}
