"""What a model of answers is worth: costs, choices, written answers, and how like their references these are."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lamella.backbones import Backbone
from lamella.backbones.generating import Generating, Written, generate, go_on, keys_of_prompts, prompt_cuts
from lamella.backbones.language_model import language_model
from lamella.data.answer_tokens import Tokens
from lamella.data.answers import ASSISTANT, PLAIN_TEXT, USER, Answer, AnswerSet, Turn
from lamella.data.scenario import Task
from lamella.data.tokens import IDS, MASK
from lamella.learner.answers.choosing import chosen, chosen_of_each
from lamella.learner.answers.costs import costs_of
from lamella.learner.answers.scores import score_answers
from lamella.methods.seq_lora import SeqLoRA
from lamella.testing import tiny_bert
from lamella.testing.answers import CHAT_SPECIAL, CHATML, tiny_causal
from lamella.testing.trial import learn
from lamella.training.recipe import LoRA, Training

PROMPTS = [Answer.to(text) for text in ("a", "what is it?", "x" * 30, "tell me more", "b", "yes or no")]


def method_on(backbone: Backbone) -> SeqLoRA:
    return SeqLoRA(backbone, lora=LoRA(rank=2, sites=("key", "value")))


@torch.no_grad()
def told(backbone: Backbone, answer: Answer) -> list[float]:
    """Nats of each target of one answer, by the network alone."""
    transform: Any = backbone.transform
    return told_by(backbone, transform.encode(answer))


@torch.no_grad()
def told_by(backbone: Backbone, tokens: Tokens) -> list[float]:
    """Nats of each target among tokens, by the network alone."""
    network: Any = backbone.model.network
    logs: Tensor = network(torch.tensor([tokens.ids])).logits[0].log_softmax(1)
    return [-float(logs[i - 1, tokens.ids[i]]) for i, is_target in enumerate(tokens.target) if is_target]


# costs


def test_perplexity_and_bits_per_byte_are_sums_over_all_answers() -> None:
    backbone = tiny_causal()
    answers = [Answer.to("a", "é"), Answer.to("b", "much longer"), Answer((Turn(PLAIN_TEXT, "text"),))]
    costs = costs_of(method_on(backbone), AnswerSet(answers))
    by_hand = [told(backbone, answer) for answer in answers]
    assert costs.targets.tolist() == [3, 12, 5], "two bytes and an end, eleven and an end, four and an end"
    assert costs.sizes.tolist() == [2, 11, 4]
    total = sum(map(sum, by_hand))
    assert costs.nats.tolist() == pytest.approx([sum(nats) for nats in by_hand], rel=1e-5)
    assert costs.loss == pytest.approx(total / 20, rel=1e-5)
    assert costs.perplexity == pytest.approx(math.exp(total / 20), rel=1e-5)
    assert costs.bits_per_byte == pytest.approx(total / 17 / math.log(2), rel=1e-5)


def test_a_choice_is_the_answer_whose_tokens_cost_least_on_average() -> None:
    backbone = tiny_causal(template=CHATML)
    talk = Answer((Turn(USER, "a"), Turn(ASSISTANT, "b"), Turn(USER, "c")))
    choices = ["no", "a much longer answer", "é"]
    prompts = [Answer.to("a"), talk]
    method = method_on(backbone)
    places, means = chosen(method, prompts, choices)
    for prompt, row, place in zip(prompts, means.tolist(), places, strict=True):
        for choice, mean in zip(choices, row, strict=True):
            nats = told(backbone, Answer((*prompt.prompt, Turn(ASSISTANT, choice))))
            own = nats[-len(choice.encode()) - 1 :]
            assert mean == pytest.approx(sum(own) / len(own), rel=1e-4), "an earlier answer does not count"
        assert place == row.index(min(row))
    with pytest.raises(ValueError, match="must be there and differ"):
        chosen(method, prompts, ["a", "a"])
    with pytest.raises(ValueError, match=r"^a\.jsonl, line 3, the choice 'zzz.*': its answer does not fit"):
        chosen(method, [Answer.to("a")._replace(place="a.jsonl, line 3")], ["b", "z" * 80])


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "T5", "OpenAIGPT"])
def test_answers_to_one_prompt_cost_what_each_costs_alone(kind: str) -> None:
    """Prompts of other lengths, some of them cut, numbers of choices that differ, and one that begins as another.

    OpenAI's first GPT keeps nothing of what it has read, so that whole passes take its place.
    """
    backbone = tiny_causal(kind, template=CHATML)
    method = method_on(backbone)
    prompts = [
        Answer.to("a"),
        Answer.to("x" * 50),
        Answer((Turn(USER, "a"), Turn(ASSISTANT, "b"), Turn(USER, "c" * 9))),
    ]
    choices = [["yes", "no"], ["a b", "a", "a bc", "é"], ["whole", "who"]]
    places, means = chosen_of_each(method, prompts, choices)
    transform: Any = backbone.transform
    cut = 0
    for prompt, own, place, found in zip(prompts, choices, places, means, strict=True):
        rows = transform.of_one_prompt([Answer((*prompt.prompt, Turn(ASSISTANT, choice))) for choice in own])
        begins = {tuple(row.ids[: row.target.index(True)]) for row in rows}
        assert len(begins) == 1, "all are told from the same tokens, the longest's"
        for row, mean, choice in zip(rows, found.tolist(), own, strict=True):
            last = sum(row.target) if kind == "T5" else len(choice.encode()) + 1  # the only answer, or the last one
            nats = method.losses(transform.batch([row])).tolist()[-last:]
            assert mean == pytest.approx(sum(nats) / len(nats), rel=1e-4)
        assert place == int(found.argmin())
        cut += rows[0].cut
    assert cut, "a prompt was too long"


def test_a_model_that_has_learned_labels_chooses_them() -> None:
    pairs = [(f"{'good' if i % 2 else 'bad'} {i}", "yes" if i % 2 else "no") for i in range(12)]
    recipe = Training(epochs=25, batch_size=6, lr=2e-2)
    method = SeqLoRA(tiny_causal(), lora=LoRA(rank=4, sites=("query", "value", "mlp")), training=recipe)
    learn(method, 0, Task(0, "labels", (), (), AnswerSet([Answer.to(*pair) for pair in pairs])))
    places, _ = chosen(method, [Answer.to(prompt) for prompt, _ in pairs], ["yes", "no"])
    assert [["yes", "no"][place] for place in places] == [label for _, label in pairs]
    assert generate(method.backbone, [Answer.to(*pairs[0])], Generating(max_tokens=6)) == ["no"]


# written answers


@torch.no_grad()
def likeliest(backbone: Backbone, prompt: Answer, count: int) -> str:
    """The answer to one prompt, token by token, each by a whole pass."""
    transform: Any = backbone.transform
    model = language_model(backbone.model, "a test")
    network: Any = model.network
    ids: list[int] = transform.prompts([prompt], 64)[0]
    written: list[int] = []
    while len(written) < count:
        token = int(network(torch.tensor([ids + written])).logits[0, -1].argmax())
        if token in model.ends:
            break
        written.append(token)
    return transform.tokenizer.decode(written)


@pytest.mark.parametrize("family", ["GPT2", "Llama", "Qwen2"])
def test_prompts_in_a_batch_are_answered_as_one_by_one(family: str) -> None:
    backbone = tiny_causal(family)
    how = Generating(max_tokens=12)
    together = generate(backbone, PROMPTS, how)
    assert together == [likeliest(backbone, prompt, 12) for prompt in PROMPTS]
    assert len(set(together)) > 1


def test_prompts_are_padded_on_the_left() -> None:
    transform: Any = tiny_causal().transform
    rows = transform.prompts(PROMPTS[:2], 64)
    x = transform.prompted(rows)
    assert x[IDS][0, -len(rows[0]) :].tolist() == rows[0]
    assert x[MASK].sum(1).tolist() == [len(row) for row in rows]
    assert not x[MASK][0, 0]
    assert x[MASK][:, -1].all()


def test_an_answer_ends_where_it_should() -> None:
    backbone = tiny_causal()
    whole = generate(backbone, PROMPTS[1:2], Generating(max_tokens=12))[0]
    assert len(whole) >= 3
    sign = whole[2]
    assert generate(backbone, PROMPTS[1:2], Generating(max_tokens=12, stop=(sign,)))[0] == whole[: whole.index(sign)]
    first = backbone.transform.tokenizer.encode(whole, add_special_tokens=False).ids[0]  # type: ignore[attr-defined]
    language_model(backbone.model, "a test").ends = (first,)
    assert generate(backbone, PROMPTS[1:2], Generating(max_tokens=12)) == [""]


def test_what_is_written_is_heard_token_by_token_and_can_be_ended() -> None:
    backbone = tiny_causal()
    asked, how = PROMPTS[:3], Generating(max_tokens=8)
    transform: Any = backbone.transform
    heard: dict[int, list[Written]] = {0: [], 1: [], 2: []}

    def hear(place: int, written: Written) -> bool:
        heard[place].append(written)
        return place != 1 or len(heard[1]) < 3

    found = go_on(backbone, transform.prompts(asked, 64), keys_of_prompts(asked), how, hear=hear)
    whole = generate(backbone, asked, how)
    assert [one.text for one in found] == [whole[0], heard[1][2].text, whole[2]]
    assert whole[1].startswith(found[1].text)
    assert found[1][1:] == (3, ""), "ended by who listens"
    for place, parts in heard.items():
        assert parts[-1] == found[place]
        assert [one.tokens for one in parts] == list(range(1, len(parts) + 1))
        assert not any(one.why for one in parts[:-1])
    assert all((one.why, one.tokens == 8) in (("length", True), ("stop", False)) for one in found[::2])


def test_draws_of_a_prompt_do_not_depend_on_its_batch() -> None:
    backbone = tiny_causal()
    how = Generating(max_tokens=10, temperature=1.0, seed=3)
    together = generate(backbone, PROMPTS, how)
    assert together == [generate(backbone, [prompt], how)[0] for prompt in PROMPTS]
    assert together != generate(backbone, PROMPTS, Generating(max_tokens=10, temperature=1.0, seed=4))
    assert generate(backbone, PROMPTS, Generating(10, 1.0, 1e-9)) == generate(backbone, PROMPTS, Generating(10)), (
        "the likeliest token alone"
    )


def test_tokens_are_drawn_by_their_probability() -> None:
    backbone = tiny_causal()
    transform: Any = backbone.transform
    with torch.no_grad():
        network: Any = backbone.model.network
        shares = network(torch.tensor(transform.prompts(PROMPTS[:1], 64))).logits[0, -1].softmax(0)
    drawn = [generate(backbone, PROMPTS[:1], Generating(1, 1.0, seed=seed))[0] for seed in range(150)]
    letters = torch.arange(len(CHAT_SPECIAL) + 32, len(CHAT_SPECIAL) + 127)  # a byte that is a text by itself
    best = int(letters[shares[letters].argmax()])
    expected = float(shares[best])
    found = sum(text == transform.tokenizer.decode([best]) for text in drawn) / len(drawn)
    assert abs(found - expected) < 4 * (expected * (1 - expected) / len(drawn)) ** 0.5 + 1e-9
    assert len(set(drawn)) > 3


def test_long_prompts_are_cut_to_leave_room() -> None:
    backbone = tiny_causal("GPT2")  # of 128 positions
    asked = [Answer.to("x" * length) for length in (26, 27, 300)]  # with what begins and what ends a prompt: 2 more
    assert prompt_cuts(backbone, asked, Generating(max_tokens=100)) == [0, 1, 274]
    assert prompt_cuts(backbone, asked, Generating(max_tokens=1)) == [0, 0, 238], "its max_length is 64"
    transform: Any = backbone.transform
    assert [len(row) for row in transform.prompts(asked, 28)] == [28, 28, 28]
    assert len(generate(backbone, [Answer.to("x" * 300)], Generating(max_tokens=100))[0]) <= 100
    with pytest.raises(
        ValueError, match="max_tokens is 128, but to a prompt of one token 'tiny-gpt2' can write 127; give less"
    ):
        generate(backbone, PROMPTS, Generating(max_tokens=128))


def test_settings_out_of_range_are_refused() -> None:
    for settings, said in (
        ({"max_tokens": 0}, "an answer has at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 0.9}, "top_p is 0.9, but at temperature 0 nothing is drawn; give a higher one"),
        ({"stop": ("",)}, "stop is"),
    ):
        with pytest.raises(ValueError, match=said):
            Generating(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="writing answers needs a language model"):
        generate(tiny_bert(), PROMPTS)


# scores


def test_scores_of_written_answers() -> None:
    scores = score_answers(
        [" Paris \n", "paris", "the cat sat", "", "abc"],
        [["Paris"], ["Paris", "Lyon"], ["the dog sat", "a cat"], ["x"], ["abd"]],
    )
    assert [score.exact for score in scores] == [True, False, False, False, False]
    assert [score.exact_casefold for score in scores] == [True, True, False, False, False]
    assert [score.rouge_l for score in scores] == pytest.approx([1, 1, 2 / 3, 0, 0])
    assert scores[0].chrf == 1
    assert scores[3].chrf == 0
    # Orders 1 and 2 of "abc" and "abd": 2 of 3, and 1 of 2; order 3: none. Precision and recall are the same.
    assert scores[4].chrf == pytest.approx((2 / 3 + 1 / 2 + 0) / 3, abs=1e-6)
    with pytest.raises(ValueError, match="need as many lists of references"):
        score_answers(["a"], [[]])


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_where_padding_stands_changes_nothing(kind: str) -> None:
    backbone = tiny_causal(kind)
    transform: Any = backbone.transform
    rows = [transform.encode(Answer.to(*pair)) for pair in [("a", "b"), ("much longer", "and an answer")]]
    model = language_model(backbone.model, "a test")
    with torch.no_grad():
        behind, before = model(transform.batch(rows)), model(transform.prompted([row.ids for row in rows]))
    torch.testing.assert_close(before, behind, rtol=1e-4, atol=1e-5)
