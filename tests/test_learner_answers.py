"""A learner of answers in Python: it learns, is stored, goes on, and answers."""

import json
import re
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch
from assistants import llama_folder
from conftest import Run

from lamella import Learner
from lamella.backbones.generating import Generating
from lamella.common.printable import printable
from lamella.data.answers import Answer, AnswerSet
from lamella.data.scenario import Task
from lamella.learner.answers.costs import costs_of
from lamella.testing.texts import pattern_texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of transformers with a small Llama."""
    return llama_folder(tmp_path / "base")


def new(folder: Path, **method: Any) -> Learner:
    settings = {"name": "inflora", "energy": 0.8, "energy_of": "data", "rank": 4, "sites": ["key", "value"]}
    training = {"epochs": 4, "batch_size": 8, "lr": 0.01}
    backbone = {"name": str(folder), "output": "tokens", "max_length": 64}
    return Learner.create(backbone=backbone, method=settings | training | method, fit={"device": "cpu"})


def task(number: int, letters: str, *more: Answer) -> Task:
    answers = [Answer.to(f"{letters}{i}", f"{letters * (1 + i % 3)}!") for i in range(8)]
    return Task(number, letters, (), (), AnswerSet([*answers, *more]))


def loss(learner: Learner, letters: str) -> float:
    data = task(0, letters).train
    assert isinstance(data, AnswerSet)
    return costs_of(learner.method, data, device="cpu").loss


def test_a_learner_of_answers_is_stored_and_goes_on(folder: Path, tmp_path: Path) -> None:
    learner = new(folder)
    before = loss(learner, "ab")
    record = learner.learn(task(0, "ab"))
    assert (record.classes, record.images) == ((), 8)
    assert loss(learner, "ab") < 0.95 * before
    learner.save(tmp_path / "model")
    for file in folder.iterdir():
        file.unlink()
    again = Learner.load(tmp_path / "model", device="cpu")
    assert loss(again, "ab") == loss(learner, "ab"), "the folder of the base is not needed any more"
    for one in (learner, again):
        one.learn(task(1, "xyz"))
    assert loss(again, "xyz") == loss(learner, "xyz")
    how = Generating(max_tokens=8)
    answers = learner.answer(["ab1", Answer.to("xyz1")], how)
    assert answers == again.answer(["ab1", "xyz1"], how)
    assert len(answers) == 2


def test_branches_learn_beside_a_base_in_4_bits(folder: Path, tmp_path: Path) -> None:
    backbone = {"name": str(folder), "output": "tokens", "max_length": 64, "storage": "nf4"}
    training = {"name": "seq-lora", "rank": 4, "sites": ["query", "value"], "epochs": 4, "batch_size": 8, "lr": 0.02}
    learner = Learner.create(backbone=backbone, method=training, fit={"device": "cpu"})
    kept = {name: buffer.clone() for name, buffer in learner.backbone.model.named_buffers() if "codes" in name}
    assert len(kept) > 8
    before = loss(learner, "ab")
    learner.learn(task(0, "ab"))
    assert loss(learner, "ab") < 0.95 * before
    assert all(torch.equal(learner.backbone.model.get_buffer(name), codes) for name, codes in kept.items())
    learner.save(tmp_path / "model")
    assert loss(Learner.load(tmp_path / "model", device="cpu"), "ab") == loss(learner, "ab")
    with pytest.raises(ValueError, match=r"'inflora' folds its branches into .* backbone.storage is 'nf4'"):
        Learner.create(backbone=backbone, method={"name": "inflora"}, fit={"device": "cpu"})


def test_what_was_cut_is_told_in_the_record_and_kept(folder: Path, tmp_path: Path) -> None:
    learner = new(folder)
    assert learner.learn(task(0, "ab")).told is None
    record = learner.learn(task(1, "xyz", Answer.to("x " * 100, "y")))
    assert record.told == ["1 answer with more than 64 tokens: the first of the prompt are cut"]
    learner.save(tmp_path / "model")
    assert [kept.told for kept in Learner.load(tmp_path / "model", device="cpu").tasks] == [None, record.told]


def test_answers_that_do_not_fit_are_in_the_record(folder: Path) -> None:
    learner = new(folder)
    long = Answer.to("a", "b" * 80)._replace(place="answers.jsonl, line 9")
    record = learner.learn(task(0, "ab", long))
    assert record.images == 8
    assert record.unreadable is not None
    assert (record.unreadable.images, record.unreadable.first) == (1, ("answers.jsonl, line 9",))
    with pytest.raises(ValueError, match="task 'too long' has no answer that can be learned: its answer does not fit"):
        learner.learn(Task(1, "too long", (), (), AnswerSet([long])))


def test_what_belongs_to_classes_is_refused(folder: Path) -> None:
    learner = new(folder)
    texts = Task(0, "texts", (0, 1), ("a", "b"), pattern_texts(2, 4, "train"))
    with pytest.raises(ValueError, match=r"this model takes answers, by the backbone .*, and task 'texts' holds texts"):
        learner.learn(texts)
    answers = task(0, "ab")
    with pytest.raises(ValueError, match="this model takes texts"):
        Learner.create(backbone="hashed-words", method="nearest-mean", fit={"device": "cpu"}).learn(answers)
    with pytest.raises(ValueError, match="method 'ranpac' needs classes, and the language model"):
        Learner.create(backbone={"name": str(folder), "output": "tokens"}, method="ranpac", fit={"device": "cpu"})


# the command


@pytest.fixture
def stored(folder: Path, tmp_path: Path) -> Path:
    """A model of answers that has learned very little, so that it writes."""
    learner = new(folder, epochs=1, lr=1e-5)
    learner.learn(task(0, "ab"))
    learner.save(tmp_path / "model")
    return tmp_path / "model"


def test_prompts_are_answered_from_the_command_line(
    lamella: Run, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ab", "what", "hello", "q", "who", "more", "then"]
    written = Learner.load(stored, device="cpu").answer(words, Generating(max_tokens=6))
    (first, one), (second, two) = [(asked, text) for asked, text in zip(words, written, strict=True) if text][:2]
    options = ("--max-tokens", "6", "--device", "cpu")
    code, out, err = lamella("generate", stored, first, *options)
    assert (code, out, err) == (0, f"{printable(one)}\n", "")
    rows = [{"prompt": first, "response": "what is right"}, {"prompt": ""}, {"prompt": second}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = lamella("generate", stored, tmp_path / "asked.jsonl", "--json", *options)
    assert [json.loads(line)["response"] for line in out.splitlines()] == [one, two]
    assert json.loads(out.splitlines()[1])["messages"] == [{"role": "user", "content": second}]
    assert err == "asked.jsonl, line 2: left out: the prompt is empty\n"
    assert [json.loads(line)["cut"] for line in out.splitlines()] == [0, 0]
    code, out, err = lamella("generate", stored, "x" * 200, first, "y" * 100, "--json", *options)
    assert [json.loads(line)["cut"] > 0 for line in out.splitlines()] == [True, False, True]
    assert err == "2 prompts with too many tokens for this model: the first are cut\n"
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(f"{first}\n\n{second}\n".encode())))
    code, out, _ = lamella("generate", stored, "-", *options)
    assert [line.split(":")[0] for line in out.splitlines()] == [first, second]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "no file 'none.jsonl'"),
        (["a", "--top-p", "0"], "top_p is 0.0; it must be above 0"),
        (["a", "--top-p", "0.9"], "at temperature 0 nothing is drawn"),
        (["a", "--max-tokens", "0"], "max-tokens"),
        (["a", "--max-tokens", "500"], "max_tokens is 500, but"),
    ],
)
def test_what_cannot_be_generated_is_said_in_a_line(
    lamella: Run, stored: Path, arguments: list[str], said: str
) -> None:
    code, _, err = lamella("generate", stored, *arguments, "--device", "cpu")
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_a_model_of_classes_writes_nothing(lamella: Run, tmp_path: Path) -> None:
    learner = Learner.create(backbone="hashed-words", method="nearest-mean", fit={"device": "cpu"})
    learner.learn(Task(0, "texts", (0, 1), ("a", "b"), pattern_texts(2, 4, "train")))
    learner.save(tmp_path / "classes")
    code, _, err = lamella("generate", tmp_path / "classes", "hello")
    assert code == 2
    assert "learns classes of texts and writes nothing; use lamella predict" in err


def test_what_a_model_of_answers_has_learned_is_shown(lamella: Run, stored: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, err = lamella("inspect", stored, "--html", page, "--device", "cpu")
    assert (code, err) == (0, f"page: {page}\n")
    assert "\n1 task, 8 answers\n" in out
    cells = [re.findall(r"\w\S*", line) for line in out.splitlines() if line.startswith(("┃", "│"))]
    assert cells[0] == ["task", "answers", "learned"]
    assert cells[1][:2] == ["ab", "8"]
    _, verbose, _ = lamella("inspect", stored, "--verbose", "--device", "cpu")
    assert verbose.startswith(out[: out.index("\n\n")])
    text = re.sub("<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    assert "1 task, 8 answers" in text
    for shown in (out, verbose, text):
        assert "class" not in re.sub("<[^>]*>", "", shown), "nothing on classes, for which the word is searched"
        assert "--no-train" not in shown
        assert "confidences" not in shown
        assert "Room for more tasks" in shown or "<h2>Room" in shown


def test_models_of_answers_are_merged(lamella: Run, folder: Path, tmp_path: Path) -> None:
    """The sum of a model with itself is twice what it learned, which PEFT adds to the network."""
    peft = pytest.importorskip("peft")
    import transformers

    learner = new(folder, epochs=1)
    learner.learn(task(0, "ab"))
    learner.save(tmp_path / "model")
    code, out, err = lamella("merge", *[tmp_path / "model"] * 2, "--rule", "sum", "--out", tmp_path / "merged")
    assert code == 0, err
    assert "left out" not in out
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    layer = network.model.layers[0].self_attn.k_proj
    before = layer.weight.detach().clone()
    model: Any = learner.backbone.model
    learned = model.network.model.layers[0].self_attn.k_proj.weight.detach() - before
    peft.PeftModel.from_pretrained(network, str(tmp_path / "merged")).merge_and_unload()
    change = network.model.layers[0].self_attn.k_proj.weight.detach() - before
    assert float(learned.norm()) > 0.01
    torch.testing.assert_close(change, 2 * learned, rtol=0, atol=1e-5)


def test_a_model_of_answers_names_no_classes(lamella: Run, stored: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": "ab"}')
    code, out, err = lamella("predict", stored, tmp_path / "asked.jsonl", "--device", "cpu")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "writes answers and knows no classes; use lamella generate" in err
