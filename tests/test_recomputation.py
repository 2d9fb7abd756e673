"""Blocks that are computed twice in training: the same bits, less memory, and as before afterwards."""

import copy
from pathlib import Path

import pytest
import torch
from assistants import llama_folder, seq2seq_folder
from encoders import tiny_text_backbone
from streams import build_shallow, draw, fit_for, learn, stream, tiny_backbone

from lamella import Learner
from lamella.data.answers import Answer, AnswerSet
from lamella.data.scenario import Task, class_incremental
from lamella.data.sources.readable import Source
from lamella.methods import METHODS, WHOLE_STREAM
from lamella.testing.texts import pattern_texts
from lamella.training.footprint import kept_for_backward
from lamella.training.recomputation import recomputed_blocks

WITHOUT_TRAINING = ("nearest-mean", "streaming-lda")
OF_TOKENS = ("gainlora",)
"""Methods for answers alone."""
FAST = {"inflora", "duallora", "seq-lora", "sdlora", "color", "coda-prompt", "replay"}
TRAINED = [n for n in METHODS if n not in (*WITHOUT_TRAINING, *WHOLE_STREAM, *OF_TOKENS)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(pytest.param(n, {}, marks=() if n in FAST else pytest.mark.slow) for n in TRAINED),
        ("seq-lora", {"dropout": 0.3}),
        ("duallora", {"tokens": "class", "residual": "current", "gate": "vector"}),
    ],
)
def test_what_is_learned_has_the_same_bits(name: str, options: dict[str, object]) -> None:
    tasks = stream(classes=4, tasks=2, per_class=6)
    twice, once = build_shallow(name, **options), build_shallow(name, **options)
    for number in range(2):
        learn(twice, number, tasks[number], fit_for(twice, recompute=True))
        learn(once, number, tasks[number])
    expected = once.state_dict()
    for key, value in twice.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_second_run_attends_as_the_first_did_in_bfloat16() -> None:
    found = []
    for recompute in (True, False):
        method = build_shallow("seq-lora", epochs=1)
        learn(method, 0, stream(4, 2)[0], fit_for(method, recompute=recompute, precision="bf16"))
        found.append(method.state_dict())
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_padding_is_no_input_in_the_second_run_either(architecture: str) -> None:
    names = ("a", "b", "c", "d")
    source = Source("texts", pattern_texts(4, 6, "train"), pattern_texts(4, 2, "test"), names)
    tasks = class_incremental(source, tasks=2, seed=0)
    found = []
    for recompute in (True, False):
        method = METHODS["inflora"](tiny_text_backbone(architecture), seed=0, **{})
        for number in range(2):
            learn(method, number, tasks[number], _short(method, recompute))
        found.append(method.state_dict())
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


def _short(method: object, recompute: bool) -> object:
    fit = fit_for(method, recompute=recompute)
    fit.augmentation = None
    return fit


@pytest.mark.parametrize(
    ("name", "family"), [("inflora", "Llama"), ("sdlora", "Llama"), ("gainlora", "Llama"), ("inflora", "T5")]
)
def test_answers_are_learned_to_the_same_bits(name: str, family: str, tmp_path: Path) -> None:
    folder = seq2seq_folder(tmp_path / "base", "T5") if family == "T5" else llama_folder(tmp_path / "base")
    found = []
    for recompute in (True, False):
        settings = {"name": name, "sites": ["key", "value"], "rank": 2, "epochs": 1, "batch_size": 4, "lr": 0.01}
        learner = Learner.create(
            backbone={"name": str(folder), "output": "tokens", "max_length": 64},
            method=settings,
            fit={"device": "cpu", "recompute": recompute},
        )
        for number, letters in enumerate(("ab", "xyz")):
            answers = [Answer.to(f"{letters}{i}", f"{letters * (1 + i % 3)}!") for i in range(6)]
            learner.learn(Task(number, letters, (), (), AnswerSet(answers)))
        found.append(learner.method.state_dict())
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


def test_less_is_kept_for_the_backward_pass_and_the_network_is_as_before() -> None:
    backbone = tiny_backbone()
    before = copy.deepcopy(backbone.model)
    x, weights = draw(8, 3, 32, 32), list(backbone.model.blocks.parameters())
    for weight in weights:
        weight.requires_grad_()
    grads, kept = [], []
    for recompute in (False, True):
        with kept_for_backward(weights) as count:
            if recompute:
                with recomputed_blocks(backbone):
                    loss = backbone(x).square().sum()
                    grads.append(torch.autograd.grad(loss, weights))
            else:
                grads.append(torch.autograd.grad(backbone(x).square().sum(), weights))
            kept.append(count())
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert kept[1] < kept[0]
    assert all("forward" not in vars(block) for block in backbone.model.blocks)
    assert torch.equal(backbone.model(x), before(x))


def test_what_cannot_be_computed_twice_is_said() -> None:
    with pytest.raises(ValueError, match=r"fit.recompute: the network has no sequence of equal blocks to c"):
        with recomputed_blocks(torch.nn.Linear(2, 2)):
            pass
    with pytest.raises(ValueError, match=r"fit.compile and fit.recompute both change how blocks run; leave one of"):
        fit_for(build_shallow("seq-lora"), compile=True, recompute=True)
