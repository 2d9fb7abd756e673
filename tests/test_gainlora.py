"""GainLoRA's gates: shut for old samples whatever a branch learns; known by what stands before an answer alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streams import batch, configured, draw, learn, plain, task, tiny_backbone
from test_language_model import ANSWERS, CHATML, causal_folder
from test_language_model import load as load_language_model
from torch import Tensor

from lamella.backbones.generating import Generating, generate
from lamella.common.randomness import generator
from lamella.data.answer_tokens import TARGET, before_targets
from lamella.data.answers import Answer, AnswerSet
from lamella.data.samples import Batch
from lamella.data.scenario import Task
from lamella.data.tokens import MASK
from lamella.learner.answers.measuring import measure_answers
from lamella.learner.answers.writing import write_answers
from lamella.memory.gates import FORMS, Gate
from lamella.memory.subspace import Subspace
from lamella.methods.gainlora import GainLoRA
from lamella.training.projected_steps import ProjectedSteps
from lamella.training.recipe import Training

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 8, "lr": 0.01, "rank": 2, "blocks": 2, "gate_width": 12}


def build(**options: Any) -> GainLoRA:
    return configured(GainLoRA, tiny_backbone(), **{**QUICK, **options})


def gate_by_hand(gate: Gate, p: Tensor) -> np.ndarray:
    """|2 sigmoid(G_3 s(G_2 s(G_1 p))) - 1|, in NumPy; with 4 cosines in place of the last product if it has them."""
    G = [matrix.detach().double().numpy() for matrix in gate.matrices]

    def silu(z: np.ndarray) -> np.ndarray:
        return z / (1 + np.exp(-z))

    x = silu(silu(p.double().numpy() @ G[0].T) @ G[1].T)
    b = x @ G[2].T
    if gate.form == "cosine":
        b = 4 * b / np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(G[2])
    return np.abs(2 / (1 + np.exp(-b[:, 0])) - 1)


# a gate --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_gate_is_the_written_out_form_and_shut_at_zero(form: str) -> None:
    gate = Gate(8, 5, form)
    assert not gate(draw(3, 8)).any()
    gate.start(None, [Subspace(8), Subspace(5), Subspace(8)], generator(0, "gate"))
    p = draw(6, 8, name="p")
    found = gate(p)
    assert np.abs(found.detach().numpy() - gate_by_hand(gate, p)).max() < 1e-6
    assert 0 < float(found.min()) < float(found.max()) < 1


@pytest.mark.parametrize("form", FORMS)
def test_the_gate_of_the_next_task_is_shut_for_old_samples_whatever_it_learns(form: str) -> None:
    spaces = [Subspace(8), Subspace(5), Subspace(8)]
    first, second = Gate(8, 5, form), Gate(8, 5, form)
    first.start(None, spaces, generator(0, "first"))
    old, new = draw(3, 8, name="old"), draw(3, 8, name="new")
    for space, read in zip(spaces, first.inputs(old), strict=True):
        space.extend(read.T)
    second.start(first, spaces, generator(0, "second"))
    assert torch.equal(second.matrices[0], first.matrices[0])
    assert float(second(old).max()) < 1e-6
    assert float(second(new).min()) > 1e-3

    steps = ProjectedSteps(second.projections(spaces))
    weights = [matrix.requires_grad_(True) for matrix in second.matrices]
    engine = torch.optim.Adam(weights, lr=0.05)
    before = second(new).detach()
    for _ in range(20):
        engine.zero_grad()
        (second(new) - 0.9).square().sum().backward()
        steps.before()
        engine.step()
        steps.after()
    assert float(second(old).detach().max()) < 1e-5
    assert float(second(new).detach().min()) > float(before.max()), "and opens for its own"


def test_a_longer_last_row_opens_a_gate_unless_it_is_of_cosines() -> None:
    opened = {}
    for form in FORMS:
        gate, p = Gate(8, 5, form), draw(6, 8, name="p")
        gate.start(None, [Subspace(8), Subspace(5), Subspace(8)], generator(0, "gate"))
        before = gate(p)
        gate.matrices[2].mul_(3)
        opened[form] = float((gate(p) - before).abs().max())
    assert opened["cosine"] < 1e-6 < 0.01 < opened["product"]


# the method ----------------------------------------------------------------------------------------------------------


def test_branches_of_later_tasks_do_not_act_on_samples_of_old_ones() -> None:
    """With gates that protect all that they read, what old samples give stays as it was."""
    method = build(gate_energy=1.0)
    learn(method, 0, task(0, (0, 1)), plain(method))
    old = batch(method, task(0, (0, 1)).train)
    wanted = method.features(old)
    learn(method, 1, task(1, (2, 3)), plain(method))
    new = batch(method, task(1, (2, 3)).train)
    with torch.no_grad():
        gates = [gate(method.pooled(old)) for gate in method.gates]
        opened = method.gates[1](method.pooled(new))
        found = method.features(old)
    assert float(gates[1].max()) < 1e-5 < 1e-3 < float(opened.min())
    assert float(gates[0].min()) > 1e-3
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    without = build(gate_energy=1.0)
    assert float((method.features(new) - without.features(new)).norm()) > 1e-3


def test_the_protected_share_of_gates_grows_as_that_of_branches_does() -> None:
    rule = build(energy=0.9, gate_energy=0.96, energy_of="moment", horizon=4).gate_rule
    assert [rule.threshold(task) for task in (0, 2, 4)] == pytest.approx([0.96, 0.98, 1.0])
    assert rule.energy_of == "moment"
    assert [build().gate_rule.threshold(task) for task in (0, 2)] == [0.99, 0.99]


def test_a_method_with_gates_of_cosines_trains_and_comes_back_as_it_was() -> None:
    method, again = build(gate_form="cosine"), build(gate_form="cosine")
    for number, classes in enumerate(((0, 1), (2, 3))):
        learn(method, number, task(number, classes), plain(method))
    again.load_state_dict(method.state_dict())
    p = method.pooled(batch(method, task(1, (2, 3)).train))
    assert [gate.form for gate in again.gates] == ["cosine"] * 2
    for gate, other in zip(method.gates, again.gates, strict=True):
        assert torch.equal(gate(p), other(p))
    assert float(method.gates[1](p).min()) > 1e-3


def test_what_stands_for_a_sample_is_the_mean_of_what_the_first_layer_reads() -> None:
    method = build()
    x = batch(method, task(0, (0, 1)).train)
    found: list[Tensor] = []
    layer: Any = method.sites[0].layer
    layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        method.backbone.model(x)
    mean = found[0].mean(1)
    expected = mean / mean.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(method.pooled(x), expected)
    learn(method, 0, task(0, (0, 1)), plain(method))
    torch.testing.assert_close(method.pooled(x), expected, msg="branches do not change it")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gate_width": 0}, "gate_width 0 is"),
        ({"gate_energy": 0}, "^gate_energy 0 is"),
        ({"gate_form": "cosin"}, "^gate_form"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build(**options)


# answers -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def learned(tmp_path: Path) -> GainLoRA:
    backbone = load_language_model(causal_folder(tmp_path / "m", template=CHATML), max_length=64)
    settings = {"rank": 2, "sites": ("query", "value"), "training": Training(epochs=3, batch_size=4, lr=0.02)}
    method = configured(GainLoRA, backbone, gate_width=12, **settings)
    for number, letters in enumerate(("ab", "xyz")):
        answers = [Answer.to(f"{letters}{i}", f"{letters * (1 + i)}!") for i in range(6)]
        learn(method, number, Task(number, letters, (), (), AnswerSet(answers)), plain(method))
    return method.eval()


def test_gates_of_an_answer_depend_on_what_it_answers_alone(learned: GainLoRA) -> None:
    transform: Any = learned.backbone.transform
    answers = [Answer.to("ab1", "one"), Answer.to("ab1", "something else"), Answer.to("xyz", "one")]
    x = transform.batch([transform.encode(answer) for answer in answers])
    p = learned.pooled(x)
    torch.testing.assert_close(p[0], p[1])
    assert not torch.allclose(p[0], p[2])
    asked = before_targets(x)
    assert isinstance(asked, Batch)
    assert not (asked[MASK] & x[TARGET]).any()
    assert asked[MASK].any(1).all()
    alone = learned.pooled(transform.prompted(transform.prompts([answers[0]], 64)))
    torch.testing.assert_close(p[:1], alone, msg="as when it is asked")


def test_what_it_writes_does_not_depend_on_the_batch(learned: GainLoRA) -> None:
    prompts = [Answer.to(text) for text in ("ab1", "xyz5 xyz", "b")]
    how = Generating(max_tokens=6)
    together = write_answers(learned, prompts, how)
    assert together == [write_answers(learned, [prompt], how)[0] for prompt in prompts]


def test_what_is_measured_is_what_it_writes_with_its_gates(learned: GainLoRA) -> None:
    for branch in (b for site in learned.sites for t in range(2) for b in site.layer.of(f"task{t}")):
        branch.B.mul_(30)  # so that a gate of 1 writes something else
    prompts, how = [Answer.to(f"ab{i}", "x") for i in range(3)], Generating(max_tokens=6)
    found = [one.written for one in measure_answers(learned, AnswerSet(prompts), how, device="cpu").answers]
    assert found == write_answers(learned, prompts, how)
    assert found != generate(learned.backbone, prompts, how)


def test_old_answers_cost_what_they_cost(learned: GainLoRA, tmp_path: Path) -> None:
    """With all that gates read protected, a third task changes nothing for the first two."""
    learned.gate_rule = type(learned.gate_rule)(1.0, "data", None)
    learned.reads = torch.nn.ModuleList(Subspace(space.width) for space in learned.spaces)
    transform: Any = learned.backbone.transform
    old = transform.batch([transform.encode(answer) for answer in ANSWERS])
    for space, read in zip(learned.spaces, learned.gates[-1].inputs(learned.pooled(old)), strict=True):
        space.extend(read.detach().T)
    with torch.no_grad():
        wanted = learned.losses(old)
        answers = AnswerSet([Answer.to(f"qq{i}", "tttt") for i in range(6)])
        with torch.enable_grad():
            learn(learned, 2, Task(2, "q", (), (), answers), plain(learned))
        torch.testing.assert_close(learned.losses(old), wanted, rtol=0, atol=1e-4)
