"""Encoder-decoders as models of answers: what is read and written, whose padding is whose, and what is exported."""

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from assistants import SETTINGS, answers_file, seq2seq_folder
from colours import TOKEN
from conftest import Run
from fastapi.testclient import TestClient
from test_language_model import batch_of, losses
from torch import Tensor, nn

from lamella import Learner
from lamella.adapters.adapter import watch
from lamella.adapters.tokens import counted, counting
from lamella.backbones import Backbone, load_backbone
from lamella.backbones.causal_models import build_causal
from lamella.backbones.encoder_copies import copy_of
from lamella.backbones.encoder_network import quiet
from lamella.backbones.generating import Generating, generate
from lamella.backbones.language_model import language_model
from lamella.common.files import write_tensors
from lamella.data.answer_pairs import AnswerPairs
from lamella.data.answer_tokens import TARGET, WRITTEN, before_targets, fitting
from lamella.data.answers import ASSISTANT, PLAIN_TEXT, USER, Answer, AnswerSet, Turn
from lamella.data.chat import ChatTemplate, plain_template_of_pairs
from lamella.data.scenario import Task
from lamella.data.tokens import IDS, MASK
from lamella.learner.answers.choosing import chosen
from lamella.learner.answers.writing import write_answers
from lamella.learner.export import export
from lamella.learner.export.causal_files import save_chat_tokenizer
from lamella.memory.subspace import SecondMoment
from lamella.methods.gainlora import GainLoRA
from lamella.methods.seq_lora import SeqLoRA
from lamella.serving.app import create_app
from lamella.testing.answers import CHAT_SPECIAL, chat_tokenizer, tiny_causal
from lamella.testing.trial import learn
from lamella.training.recipe import LoRA, Training

FAMILIES = ("T5", "Bart")
BYTE = len(CHAT_SPECIAL)
ANSWERS = [Answer.to("what is it?", "b"), Answer.to("a", "it is that"), Answer((Turn(PLAIN_TEXT, "once upon a time"),))]
PROMPTS = [Answer.to(text) for text in ("a", "what is it?", "x" * 30, "Grüße")]


def own_ids(text: str) -> list[int]:
    return [BYTE + byte for byte in text.encode()]


def pairs(max_length: int = 64, start: int = 0) -> AnswerPairs:
    """What makes inputs as of T5: nothing begins a text, and [SEP] ends it."""
    chat = ChatTemplate(CHAT_SPECIAL, template=plain_template_of_pairs("", "[SEP]"), names={"eos_token": "[SEP]"})
    return AnswerPairs(chat_tokenizer(), chat, max_length=max_length, start=start)


# what is read and what is written


def test_a_prompt_is_read_and_its_answer_is_written() -> None:
    x = pairs().batch([pairs().encode(answer) for answer in (Answer.to("ab", "c"), Answer.to("d", "efg"))])
    assert x[IDS].tolist() == [[*own_ids("ab"), 2], [*own_ids("d"), 2, 0]]
    assert x[MASK].tolist() == [[True, True, True], [True, True, False]]
    assert x[WRITTEN].tolist() == [[0, *own_ids("c"), 2, 0, 0], [0, *own_ids("efg"), 2]]
    assert x[TARGET].tolist() == [[False, True, True, False, False], [False, True, True, True, True]]


def test_of_a_conversation_the_last_answer_is_written_and_all_else_is_read() -> None:
    turns = (Turn("system", "s"), Turn(USER, "u"), Turn(ASSISTANT, "a"), Turn(USER, "v"), Turn(ASSISTANT, "[SEP]"))
    found = pairs().encode(Answer(turns))
    read = [*own_ids("s\nu"), 2, *own_ids("a"), 2, *own_ids("v"), 2]
    assert found.ids == [*read, *own_ids("[SEP]"), 2], "and what looks like a special token is plain text"
    assert found.target == [False] * len(read) + [True] * 6
    assert pairs().prompts([Answer(turns)], 64) == [read]
    assert pairs().encode(Answer((Turn(PLAIN_TEXT, "t"),))).ids == [2, *own_ids("t"), 2], "a text to an empty prompt"
    assert pairs().prompts([Answer((Turn(PLAIN_TEXT, "t"),))], 64) == [[2]]
    assert pairs().continued("ab") == [*own_ids("ab"), 2]


def test_a_decoder_that_begins_every_text_with_a_token_writes_it_unless_it_starts_from_it() -> None:
    for start, opening in ((2, [1]), (1, [])):
        chat = ChatTemplate(
            CHAT_SPECIAL,
            template=plain_template_of_pairs("[CLS]", "[SEP]"),
            names={"eos_token": "[SEP]"},
            begin="[CLS]",
        )
        transform = AnswerPairs(chat_tokenizer(), chat, max_length=64, start=start)
        x = transform.batch([transform.encode(Answer.to("a", "b"))])
        assert x[IDS].tolist() == [[1, *own_ids("a"), 2]]
        assert x[WRITTEN].tolist() == [[start, *opening, *own_ids("b"), 2]]


def test_what_does_not_fit_is_cut_or_left_out() -> None:
    transform = pairs(max_length=6)
    text = "abcdefgh"
    data = AnswerSet([Answer.to(text, "x"), Answer.to("a", text), Answer((Turn(PLAIN_TEXT, text),))])
    found = fitting(data, transform)
    rows = [transform.encode(answer) for answer in found.data.items]
    assert rows[0].ids == [*own_ids("defgh"), 2, *own_ids("x"), 2], "the beginning of a prompt"
    assert rows[1].ids == [2, *own_ids("abcde")], "the end of a plain text"
    assert [row.cut for row in rows] == [3, 4]
    assert len(found.too_long) == 1
    assert "does not fit into max_length = 6 tokens, by 4 tokens; shorten it" in found.too_long[0].reason
    with pytest.raises(ValueError, match="does not fit"):
        data.batch(range(3), transform.view())


def t5_tokenizer() -> Any:
    """T5's tokenizer as transformers makes it, whose tokens are pieces that a blank begins, with few of them."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abc", "\u2581ab", "\u2581c", "bc", "\u2581<", "/", "s", ">", "<"]
    return transformers.T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def test_what_is_read_and_written_is_what_the_models_tokenizer_makes_of_a_text(tmp_path: Path) -> None:
    plain, folder = t5_tokenizer(), seq2seq_folder(tmp_path / "m", "T5")
    plain.save_pretrained(folder)
    backbone: Any = load_backbone(str(folder), output="tokens")
    transform = backbone.transform
    for prompt, response in (("ab c", "c ab"), (" ab\n c", "a"), ("abc", "bc zz")):
        found = transform.encode(Answer.to(prompt, response))
        read, written = plain(prompt).input_ids, plain(text_target=response).input_ids
        assert (found.ids, found.target) == ([*read, *written], [False] * len(read) + [True] * len(written))
    marked = transform.encode(Answer.to("ab</s>", "c")).ids
    assert marked.count(1) == 2, "the end of what is read and of what is written, and none that a person wrote"
    assert len(marked) > len(transform.encode(Answer.to("ab", "c")).ids)
    assert backbone.model.ends[-1] == 1
    save_chat_tokenizer(backbone.model, transform, tmp_path / "m")  # compares conversations itself
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert again("ab c").input_ids == plain("ab c").input_ids


# what it computes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers(family: str) -> None:
    backbone = tiny_causal(family)
    x = batch_of(backbone, ANSWERS)
    assert not x[MASK].all()
    assert not x[TARGET][:, 1:].all()
    labels = x[WRITTEN][:, 1:].masked_fill(~x[TARGET][:, 1:], -100)
    network: Any = backbone.model.network
    with torch.no_grad():
        wanted = network(input_ids=x[IDS], attention_mask=x[MASK].long(), labels=labels).loss
        found = losses(backbone, x)
        alone = torch.cat([losses(backbone, batch_of(backbone, [answer])) for answer in ANSWERS])
    assert len(found) == int(x[TARGET].sum()) == int((labels >= 0).sum())
    assert float(found.mean()) == pytest.approx(float(wanted), abs=1e-5)
    torch.testing.assert_close(found, alone, rtol=0, atol=2e-5 * float(alone.max()), msg="padded as alone")


def test_logits_of_the_vocabulary_are_computed_where_targets_are() -> None:
    backbone = tiny_causal("T5")
    network: Any = backbone.model.network
    rows: list[int] = []
    handle = network.lm_head.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[:-1].numel()))
    x = batch_of(backbone, ANSWERS)
    losses(backbone, x)
    features = backbone(x)
    handle.remove()
    assert rows == [int(x[TARGET].sum())], "and none for features"
    alone = torch.cat([backbone(batch_of(backbone, [answer])) for answer in ANSWERS])
    torch.testing.assert_close(features, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


@torch.no_grad()
def plain_moments(model: Any, transform: Any, names: list[str]) -> dict[str, Tensor]:
    """The mean of h h^T over all inputs h of layers, of transformers alone: each answer by itself, without padding."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str) -> Any:
        return lambda _, inputs: seen[name].append(inputs[0].flatten(0, -2).double())

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    for answer in ANSWERS:
        tokens = transform.encode(answer)
        read = [i for i, is_target in zip(tokens.ids, tokens.target, strict=True) if not is_target]
        written = [i for i, is_target in zip(tokens.ids, tokens.target, strict=True) if is_target]
        model.network(torch.tensor([read]), decoder_input_ids=torch.tensor([[transform.start, *written[:-1]]]))
    for hook in hooks:
        hook.remove()
    return {name: (h := torch.cat(rows)).T @ h / len(h) for name, rows in seen.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [24, 40])
def test_padding_of_either_side_is_no_input_of_a_layer(family: str, width: int) -> None:
    """Also where prompts and answers are padded to one length, and shapes tell the two apart no more."""
    backbone = tiny_causal(family)
    sites = backbone.sites("query", "key", "value", "out")
    names = [site.name for site in sites]
    assert sum("EncDecAttention" in name or "encoder_attn" in name for name in names) == 8
    x = batch_of(backbone, ANSWERS)
    x = x.map(lambda tensor: nn.functional.pad(tensor, (0, width - tensor.shape[1])))
    with watch(sites, lambda layer: SecondMoment(layer.weight.shape[1], torch.float64)) as seen:
        backbone.show(x, sites)
    wanted = plain_moments(tiny_causal(family).model, backbone.transform, names)
    for name, moment in seen.items():
        torch.testing.assert_close(moment.mean, wanted[name], rtol=1e-4, atol=1e-5)


def test_tokens_beside_those_of_a_pass_have_a_mask_of_their_own() -> None:
    mine, other = torch.arange(6.0).view(2, 3, 1), torch.arange(8.0).view(2, 4, 1)
    mask, beside = torch.tensor([[1, 0, 0], [1, 1, 0]]).bool(), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    with counting(mask, beside=(other, beside)):
        assert counted(mine).flatten().tolist() == [0, 3, 4]
        assert counted(other).flatten().tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(RuntimeError, match="has an input of the shape"):
            counted(other.clone())


def test_cross_attentions_of_all_blocks_share_one_moment() -> None:
    backbone = tiny_causal("T5")
    first = backbone.first_readers(backbone.sites("key", "value"))
    of_cross = {first[name] for name in first if "EncDecAttention" in name}
    assert of_cross == {"network.decoder.block.0.layer.1.EncDecAttention.k"}
    assert len(set(first.values())) == 5, "and two self-attentions on each side have one each"


# writing


@torch.no_grad()
def likeliest(backbone: Backbone, prompt: Answer, count: int) -> str:
    """What transformers' network writes, token by token, without padding and without a cache."""
    model, transform = language_model(backbone.model, "a test"), backbone.transform
    network: Any = model.network
    assert isinstance(transform, AnswerPairs)
    (read,) = transform.prompts([prompt], 64)
    written = [transform.start]
    while len(written) <= count:
        token = int(network(torch.tensor([read]), decoder_input_ids=torch.tensor([written])).logits[0, -1].argmax())
        if token in model.ends:
            break
        written.append(token)
    return transform.tokenizer.decode(written[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_in_a_batch_are_answered_as_one_by_one(family: str) -> None:
    backbone = tiny_causal(family)
    together = generate(backbone, PROMPTS, Generating(max_tokens=10))
    assert together == [likeliest(backbone, prompt, 10) for prompt in PROMPTS]
    assert len(set(together)) > 1
    drawing = Generating(max_tokens=10, temperature=1.0, seed=3)
    assert generate(backbone, PROMPTS, drawing) == [generate(backbone, [prompt], drawing)[0] for prompt in PROMPTS]


def test_positions_of_a_decoder_are_its_own() -> None:
    backbone = tiny_causal("Bart")  # of 128 positions on either side
    assert generate(backbone, PROMPTS[:1], Generating(max_tokens=128))
    with pytest.raises(
        ValueError, match="max_tokens is 129, but to a prompt of one token 'tiny-bart' can write 128; give less"
    ):
        generate(backbone, PROMPTS[:1], Generating(max_tokens=129))
    assert language_model(tiny_causal("T5").model, "a test").longest_prompt(10**6) is None
    transform: Any = backbone.transform
    transform.max_length = 128
    x = batch_of(backbone, [Answer.to("x" * 200, "y" * 125)])
    assert x[IDS].shape == x[WRITTEN].shape == (1, 128), "the longest that are taken"
    assert losses(backbone, x).isfinite().all()


# methods


LORA = LoRA(rank=4, sites=("key", "value"))


def task(number: int, letters: str) -> Task:
    answers = [Answer.to(f"{letters}{i}", f"{letters[i % len(letters)] * 3}!") for i in range(8)]
    return Task(number, letters, (), (), AnswerSet(answers))


def test_the_choice_is_the_answer_that_costs_transformers_least_and_learning_lowers_that() -> None:
    method = SeqLoRA(tiny_causal("T5"), lora=LoRA(rank=8, sites=("query", "value")), training=Training(8, 4, 0.02))
    transform: Any = method.backbone.transform
    network: Any = tiny_causal("T5").model.network

    @torch.no_grad()
    def cost(prompt: str, answer: str) -> float:
        read, written = transform.prompts([Answer.to(prompt)], 64), [1, *own_ids(answer), 2]
        return float(network(input_ids=torch.tensor(read), labels=torch.tensor([written])).loss)

    choices = ["aaa!", "bbb!", "x"]
    places, costs = chosen(method, [Answer.to("ab0"), Answer.to("ab1")], choices, device="cpu")
    wanted = torch.tensor([[cost(prompt, answer) for answer in choices] for prompt in ("ab0", "ab1")])
    torch.testing.assert_close(costs, wanted.double(), rtol=1e-5, atol=1e-4)
    assert places == wanted.argmin(1).tolist()
    learn(method, 0, task(0, "ab"))
    places, after = chosen(method, [Answer.to("ab0"), Answer.to("ab1")], choices, device="cpu")
    assert float(after[0, 0]) < 0.5 * float(costs[0, 0])
    assert 2 not in places, "which was not learned"


def test_gates_see_the_whole_prompt_and_nothing_of_the_answer() -> None:
    method = GainLoRA(tiny_causal("T5"), lora=LORA, training=Training(1, 4, 1e-2), energy=0.8, gate_width=8)
    for number, letters in enumerate(("ab", "xyz")):
        learn(method, number, task(number, letters))
    transform: Any = method.eval().backbone.transform
    answers = [Answer.to("ab1", "one"), Answer.to("ab1", "something else"), Answer.to("xyzxyz", "one")]
    x = transform.batch([transform.encode(answer) for answer in answers])
    assert before_targets(x) is x
    p = method.pooled(x)
    torch.testing.assert_close(p[0], p[1])
    assert not torch.allclose(p[0], p[2])
    torch.testing.assert_close(p[::2], method.pooled(transform.prompted(transform.prompts(answers[::2], 64))))
    prompts, how = [Answer.to(text) for text in ("ab1", "xyz5 xyz", "b")], Generating(max_tokens=6)
    assert write_answers(method, prompts, how) == [write_answers(method, [prompt], how)[0] for prompt in prompts]


# files


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_and_a_copy_of_it_are_the_same_model(family: str, tmp_path: Path) -> None:
    folder = seq2seq_folder(tmp_path / "m", family)
    backbone: Any = load_backbone(str(folder), output="tokens", max_length=32)
    assert isinstance(backbone.transform, AnswerPairs)
    assert (backbone.transform.noun, backbone.width, backbone.transform.max_length) == ("answer", 32, 32)
    assert backbone.model.ends == (2,)
    assert backbone.model.start == {"T5": 0, "Bart": 2}[family]
    network: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    state, own = backbone.model.plain_state(), network.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)
    write_tensors(tmp_path / "copy.safetensors", *copy_of(backbone))
    again: Any = load_backbone("gone", output="tokens", weights=str(tmp_path / "copy.safetensors"), max_length=32)
    assert again.weights_sha256 == backbone.weights_sha256
    assert torch.equal(losses(again, batch_of(again, ANSWERS)), losses(backbone, batch_of(backbone, ANSWERS)))


def test_what_the_decoder_starts_from_is_found_or_asked_for(tmp_path: Path) -> None:
    folder = seq2seq_folder(tmp_path / "m", "T5")
    config, generation = folder / "config.json", folder / "generation_config.json"
    table = json.loads(config.read_text())
    begin = {"bos_token_id": table.pop("bos_token_id")}
    assert table.pop("decoder_start_token_id") == 0 != begin["bos_token_id"]
    config.write_text(json.dumps(table))
    assert build_causal(str(folder)).model.start == 0, "as the file of how it writes says"
    generation.unlink()
    with pytest.raises(ValueError, match="do not say what its decoder starts from; add decoder_start_token_id to"):
        build_causal(str(folder))
    config.write_text(json.dumps(table | begin))
    assert build_causal(str(folder)).model.start == 1, "as transformers does where only that is known"


FOLDERS = TemporaryDirectory(prefix="lamella-tests-")


@cache
def learned(method: str = "inflora") -> Learner:
    """A learner of two tasks on a T5."""
    backbone = {"name": str(seq2seq_folder(Path(FOLDERS.name, method), "T5")), "output": "tokens", "max_length": 64}
    settings = {"epochs": 3, "batch_size": 4, "rank": 2, "lr": 1e-2, "sites": ["key", "value"]}
    learner = Learner.create(backbone=backbone, method={"name": method, **settings}, fit={"device": "cpu"})
    for i, letters in enumerate(("ab", "xyz")):
        learner.learn(task(i, letters))
    return learner


def check_exported(network: Any, tokenizer: Any, learner: Learner) -> None:
    """Plain transformers computes and writes what the learner does, and not what it did before it learned."""
    transform: Any = learner.backbone.transform
    texts = ["ab1", "What is it?\n", "x" * 40]
    x = transform.batch([transform.encode(Answer.to(text, "yes")) for text in texts])
    arguments = {IDS: x[IDS], MASK: x[MASK].long(), WRITTEN: x[WRITTEN]}
    with torch.no_grad():
        found = network.eval()(**arguments).logits[:, :-1][x[TARGET][:, 1:]]
        before = learner.model.new_backbone().model.network(**arguments).logits[:, :-1][x[TARGET][:, 1:]]  # type: ignore[operator,union-attr]
        with learner.method.eval().acting(x):
            wanted = learner.backbone.run(x, language_model(learner.backbone.model, "a test").logits)
    allowed = 1e-4 * float(wanted.abs().max())
    assert float((before - wanted).abs().max()) > 100 * allowed, "something was learned"
    torch.testing.assert_close(found, wanted, rtol=0, atol=allowed)
    asked = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    written = tokenizer.batch_decode(network.generate(**asked, max_new_tokens=8), skip_special_tokens=True)
    assert written == learner.answer(texts, Generating(max_tokens=8))


def test_transformers_loads_it_and_writes_the_same(tmp_path: Path) -> None:
    lines = export(learned().model, "hf", tmp_path / "model")
    assert "on 6 random answers" in lines[0]
    assert f"transformers.AutoModelForSeq2SeqLM.from_pretrained('{tmp_path / 'model'}')" in lines[-1]
    with quiet():
        network: Any = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "model")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.padding_side == "right"
    check_exported(network, tokenizer, learned())


def test_peft_adds_it_to_the_weights_that_it_belongs_to(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lines = export(learned().model, "peft", tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert "AutoModelForSeq2SeqLM" in lines[-1]
    with quiet():
        base: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "lora" / "base")
        network = peft.PeftModel.from_pretrained(base, str(tmp_path / "lora"))
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "lora")
    check_exported(network, tokenizer, learned())


# commands


def test_it_is_taught_measured_asked_and_served_as_any_model_of_answers(lamella: Run, tmp_path: Path) -> None:
    base, model = seq2seq_folder(tmp_path / "base", "T5"), tmp_path / "assistant"
    first = answers_file(tmp_path / "first.jsonl", "ab", 12)
    code, out, err = lamella("learn", model, first, "--backbone", base, *SETTINGS, "method.epochs=2")
    assert code == 0, err
    found = re.search(r"nats a token \(perplexity\): (\S+) \(\S+\) before, (\S+) \(\S+\) after", out)
    assert found
    assert float(found[2]) < float(found[1])
    code, out, err = lamella("evaluate", model, first, "--max-tokens", "2", "--json", "--device", "cpu")
    assert code == 0, err
    assert {"loss", "perplexity", "exact", "choice"} <= set(json.loads(out)["scores"])
    code, out, err = lamella("generate", model, "ab1", "--max-tokens", "5", "--device", "cpu")
    assert code == 0, err
    with TestClient(create_app(model, token=TOKEN, device="cpu")) as client:
        said = {"model": "assistant", "messages": [{"role": "user", "content": "ab1"}], "max_tokens": 5}
        answer = client.post("/v1/chat/completions", json=said).json()
        raw = client.post("/v1/completions", json={"model": "assistant", "prompt": "ab1", "max_tokens": 5}).json()
    assert answer["choices"][0]["message"]["content"] == out.rstrip("\n")
    assert raw["choices"][0]["text"] == out.rstrip("\n"), "a text alone is a prompt to an encoder-decoder"
    assert answer["usage"]["prompt_tokens"] == 5
