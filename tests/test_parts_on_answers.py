"""Parts on a language model: answers that are trained again, and weights that are averaged or merged over tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from assistants import llama_folder

from lamella import Learner
from lamella.backbones.generating import Generating
from lamella.common.randomness import generator
from lamella.data.answers import Answer, AnswerSet, Turn
from lamella.data.scenario import Task
from lamella.learner.answers.costs import costs_of
from lamella.memory.kept_answers import KeptAnswers
from lamella.methods.parts.merge import Merged
from lamella.methods.parts.other_weights import OtherWeights
from lamella.methods.parts.rehearsal import Rehearsed
from lamella.testing.texts import pattern_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers with a small Llama."""
    return llama_folder(tmp_path_factory.mktemp("model") / "base")


def new(folder: Path, name: str, **method: Any) -> Learner:
    settings = {"name": name, "sites": ["key", "value"], "rank": 4, "epochs": 3, "batch_size": 8, "lr": 0.02}
    backbone = {"name": str(folder), "output": "tokens", "max_length": 64}
    return Learner.create(backbone=backbone, method=settings | method, fit={"device": "cpu"})


def task(number: int, letters: str) -> Task:
    answers = [Answer.to(f"{letters}{i}", f"{letters * (1 + i % 3)}!") for i in range(10)]
    return Task(number, letters, (), (), AnswerSet(answers))


def taught(folder: Path, name: str, **method: Any) -> Learner:
    learner = new(folder, name, **method)
    learner.learn(task(0, "ab"))
    learner.learn(task(1, "xyz"))
    return learner


def loss(learner: Learner, letters: str) -> float:
    data = task(0, letters).train
    assert isinstance(data, AnswerSet)
    return costs_of(learner.method, data, device="cpu").loss


def test_a_share_of_old_answers_is_trained_again(folder: Path, tmp_path: Path) -> None:
    plain, kept = taught(folder, "seq-lora"), taught(folder, "seq-lora+rehearsal", rehearsal={"share": 0.5})
    assert loss(kept, "ab") < loss(plain, "ab") - 0.1, "what is trained again is forgotten less"
    assert isinstance(kept.method, Rehearsed)
    first, second = ({a.turns for a in some.train.items} for some in (task(0, "ab"), task(1, "xyz")))  # type: ignore[union-attr]
    held = [answer.turns for answer in kept.method.kept.as_set().items]
    assert [turns in first for turns in held] == [True] * 5 + [False] * 5
    assert set(held[5:]) <= second
    kept.save(tmp_path / "model")
    again = Learner.load(tmp_path / "model", device="cpu")
    for learner in (kept, again):
        learner.learn(task(2, "mn"))
    assert [loss(again, letters) for letters in ("ab", "mn")] == [loss(kept, letters) for letters in ("ab", "mn")]


def test_no_share_is_the_method_alone(folder: Path) -> None:
    plain, none = taught(folder, "seq-lora"), taught(folder, "seq-lora+rehearsal", rehearsal={"share": 0.0})
    assert loss(none, "ab") == loss(plain, "ab")
    assert isinstance(none.method, Rehearsed)
    assert len(none.method.kept) == 0


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.02, 1), (0.1, 2), (0.5, 10), (1.0, 20)])
def test_the_share_is_rounded_and_something_is_kept_of_every_task(share: float, count: int) -> None:
    rows = [
        Answer(
            (Turn("system", "Be «brief»."), Turn("user", f"{i}?"), Turn("assistant", "\u2028 é")), ("x",), "p", ("y",)
        )
        for i in range(20)
    ]
    data, kept = AnswerSet(rows), KeptAnswers()
    kept.keep(data, share, generator(0, "test"))
    assert len(kept) == count
    assert set(kept.as_set().items) <= set(rows)
    assert len(kept.join(data)) == 20 + count
    other = KeptAnswers()
    other.load_state_dict(kept.state_dict())
    assert other.as_set().items == kept.as_set().items
    assert other.as_set().keys == kept.as_set().keys


def test_what_cannot_be_rehearsed_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"share 1\.5 of the answers cannot be kept; it is from 0"):
        new(folder, "seq-lora+rehearsal", rehearsal={"share": 1.5})
    with pytest.raises(ValueError, match="rehearsal keeps answers, and 'hashed-words' is no language model; for clas"):
        Learner.create(backbone="hashed-words", method="nearest-mean+rehearsal", fit={"device": "cpu"})
    with pytest.raises(ValueError, match="a memory of answers keeps answers, and these are texts"):
        KeptAnswers().keep(pattern_texts(2, 4, "train"), 0.5, generator(0, "test"))


@pytest.mark.parametrize("name", ["seq-lora", "inflora", "olora"])
def test_the_mean_of_weights_answers_as_the_mean_of_both_models_weights(folder: Path, name: str) -> None:
    alone, mean = new(folder, name), new(folder, f"{name}+mean_weights")
    first = {n: p.clone() for n, p in _acting(mean).items()}
    weights = []
    for one in (task(0, "ab"), task(1, "xyz")):
        mean.learn(one)
        alone.learn(one)
        with _part(mean).base_alone():
            weights.append(_acting(mean))
            assert loss(mean, "ab") == loss(alone, "ab"), "it is trained as the method alone"
    for n, found in _acting(mean).items():
        torch.testing.assert_close(found, (weights[0][n] + weights[1][n]) / 2, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, first[n], atol=1e-4)
    assert loss(mean, "ab") != loss(alone, "ab")
    assert mean.answer(["ab1"], Generating(max_tokens=4)) == mean.answer(["ab1"], Generating(max_tokens=4))


@pytest.mark.parametrize("rule", ["sum", "mean", "ties", "tsv", "regmean"])
def test_answers_are_given_by_merged_adapters(folder: Path, rule: str) -> None:
    alone = taught(folder, "seq-lora", fresh=True)
    merged = taught(folder, "seq-lora+merge", fresh=True, merge={"rule": rule})
    assert isinstance(merged.method, Merged)
    if rule == "sum":
        assert loss(merged, "ab") == pytest.approx(loss(alone, "ab"), rel=1e-5), (
            "the sum of the updates is the method's"
        )
    else:
        assert loss(merged, "ab") != pytest.approx(loss(alone, "ab"), rel=1e-3)
    with merged.method.base_alone():
        assert loss(merged, "xyz") == loss(alone, "xyz")


def test_a_run_has_the_row_of_the_whole_method(folder: Path, tmp_path: Path) -> None:
    from lamella.experiments.run import run
    from lamella.learner.config.document import load_config

    rows = [json.dumps({"prompt": f"a{i}", "response": "b!", "split": "test" if i < 2 else "train"}) for i in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "c.jsonl").write_text("\n".join(rows).replace('"a', '"c'))
    (tmp_path / "stream.toml").write_text(
        f"""[scenario]
kind = "datasets"
sources = {json.dumps([str(tmp_path / "a.jsonl"), str(tmp_path / "c.jsonl")])}
[backbone]
name = "{folder}"
output = "tokens"
max_length = 64
[method]
name = "seq-lora+rehearsal+mean_weights"
sites = ["key", "value"]
epochs = 1
[fit]
device = "cpu"
[run]
max_tokens = 4
"""
    )
    out = run(load_config(tmp_path / "stream.toml", ()), tmp_path / "out", quiet=True)
    found = json.loads((out / "results.json").read_text())
    assert (found["method"], found["base_of"]) == ("seq-lora+mean_weights+rehearsal", None)
    assert found["scores"]["loss"]["matrix"][1][0] is not None


def _part(learner: Learner) -> OtherWeights:
    assert isinstance(learner.method, OtherWeights)
    return learner.method


def _acting(learner: Learner) -> dict[str, torch.Tensor]:
    return _part(learner).acting_weights()
