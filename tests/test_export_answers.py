"""Exports of models of answers: transformers and PEFT load them without Lamella, and write what the model writes."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from assistants import llama_folder
from torch import Tensor

from lamella import Learner
from lamella.backbones.encoder_network import quiet
from lamella.backbones.generating import Generating
from lamella.backbones.load import load_backbone
from lamella.common.options import options_of
from lamella.data.answers import Answer, AnswerSet, Turn
from lamella.data.scenario import Task
from lamella.data.tokens import IDS, MASK
from lamella.learner.export import export
from lamella.learner.export.causal_files import save_chat_tokenizer
from lamella.learner.export.network import own_logits
from lamella.methods import METHODS
from lamella.testing.answers import tiny_causal

FOLDERS = TemporaryDirectory(prefix="lamella-tests-")
"""Of the language models that models are made of."""
PROMPTS = ["ab1", "What is it?\n", "x" * 40]
SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 4, "rank": 2, "lr": 1e-2, "sites": ["key", "value"], "energy": 0.8,
}  # fmt: skip


@cache
def base(family: str) -> Path:
    """A folder of transformers with a tiny causal language model of a family; Llama has a chat template."""
    folder = Path(FOLDERS.name, family)
    if family == "Llama":
        return llama_folder(folder)
    backbone: Any = tiny_causal(family)
    with quiet():
        backbone.model.network.save_pretrained(folder, state_dict=backbone.model.plain_state())
    save_chat_tokenizer(backbone.model, backbone.transform, folder)
    return folder


def answers(letters: str) -> AnswerSet:
    return AnswerSet([Answer.to(f"{letters}{i}", f"{letters[i % len(letters)] * 3}!") for i in range(8)])


@cache
def learned(method: str, family: str = "Llama", storage: str = "float32") -> Learner:
    """A learner of two tasks of answers."""
    table = {"name": method, **{key: value for key, value in SETTINGS.items() if key in options_of(METHODS[method])}}
    backbone = {"name": str(base(family)), "output": "tokens", "max_length": 64, "storage": storage}
    learner = Learner.create(backbone=backbone, method=table, fit={"device": "cpu"})
    for i, letters in enumerate(("ab", "xyz")):
        learner.learn(Task(i, f"task {i}", (), (), answers(letters)))
    return learner


def logits(network: Any, x: Any) -> Tensor:
    with torch.no_grad():
        return network.eval()(x[IDS], attention_mask=x[MASK].long()).logits[x[MASK].bool()]


def close(found: Tensor, learner: Learner) -> None:
    x: Any = inputs(learner)
    with torch.no_grad():
        wanted = own_logits(learner.method.eval())(x)
        before = logits(learner.model.new_backbone().model.network, x)
    allowed = 1e-4 * float(wanted.abs().max())
    assert float((before - wanted).abs().max()) > 100 * allowed, "something was learned"
    torch.testing.assert_close(found, wanted, rtol=0, atol=allowed)


def inputs(learner: Learner) -> Any:
    transform: Any = learner.backbone.transform
    return transform.batch([transform.encode(Answer.to(prompt, "yes")) for prompt in PROMPTS])


def plainly_written(network: Any, tokenizer: Any, prompts: list[list[dict[str, str]]]) -> list[str]:
    """What transformers alone writes to conversations, in one padded batch."""
    x = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    written = network.generate(**x, max_new_tokens=8)[:, x[IDS].shape[1] :]
    return tokenizer.batch_decode(written, skip_special_tokens=True)


# transformers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "family"), [("inflora", "Llama"), ("sdlora", "GPT2")])
def test_transformers_loads_it_and_writes_the_same(method: str, family: str, tmp_path: Path) -> None:
    import transformers

    learner = learned(method, family)
    lines = export(learner.model, "hf", tmp_path / "model")
    assert "on 6 random answers" in lines[0]
    assert f"transformers.AutoModelForCausalLM.from_pretrained('{tmp_path / 'model'}')" in lines[-1]
    with quiet():
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(network).__name__ == {"Llama": "LlamaForCausalLM", "GPT2": "GPT2LMHeadModel"}[family]
    close(logits(network, inputs(learner)), learner)
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    found = plainly_written(network, tokenizer, asked)
    assert found == learner.answer(PROMPTS, Generating(max_tokens=8))
    assert any(found)
    assert network.generation_config.eos_token_id == list(learner.backbone.model.ends)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["use_cache"]
    assert (config["lamella"]["tasks"], "class_names" in config["lamella"]) == (["task 0", "task 1"], False)


def test_weights_in_few_bits_become_float32(tmp_path: Path) -> None:
    learner = learned("sdlora", storage="nf4")
    assert "on 6 random answers" in export(learner.model, "hf", tmp_path / "model")[0]
    with pytest.raises(ValueError, match="was learned on weights in few bits, and an adapter by itself"):
        export(learner.model, "peft", tmp_path / "lora")


def test_rounded_weights_of_a_gguf_file_are_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = learned("inflora").model
    monkeypatch.setitem(model.config["backbone"], "name", "small.gguf")
    assert any("came from a GGUF file" in line for line in export(model, "hf", tmp_path / "model"))


def test_a_conversation_is_written_as_the_model_reads_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    transform: Any = learned("inflora").backbone.transform
    export(learned("inflora").model, "hf", tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    turns = (Turn("system", "s"), Turn("user", "ä😀"), Turn("assistant", "b"), Turn("user", "c"))
    found = tokenizer.apply_chat_template(
        [turn._asdict() for turn in turns], add_generation_prompt=True, return_dict=True
    )
    assert [found[IDS]] == transform.prompts([Answer(turns)], room=1000)


def test_a_template_that_names_the_day_is_told_the_same_day(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = "{{ date_string }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    backbone: Any = tiny_causal(template=template)
    save_chat_tokenizer(backbone.model, backbone.transform, tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "26 Jul 2024a"


def test_a_tokenizer_that_writes_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learned("inflora")
    chat: Any = learner.backbone.transform.chat
    monkeypatch.setattr(chat, "names", {**chat.names, "bos_token": "no token"})
    monkeypatch.setattr(chat, "template", "{{ bos_token }}" + chat.template)
    with pytest.raises(RuntimeError, match="writes conversations otherwise, so it was not kept"):
        export(learner.model, "hf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_export_is_a_start_for_a_new_model(tmp_path: Path) -> None:
    learner = learned("inflora")
    export(learner.model, "hf", tmp_path / "model")
    again: Any = load_backbone(str(tmp_path / "model"), output="tokens", max_length=64)
    assert (again.model.ends, again.transform.chat.template) == (
        learner.backbone.model.ends, learner.backbone.transform.chat.template,
    )  # fmt: skip
    with torch.no_grad():
        close(again.model.every_logit(inputs(learner)), learner)


# PEFT ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "family", "rank"), [("inflora", "GPT2", 4), ("olora", "Llama", 4)])
def test_peft_adds_it_to_the_weights_that_it_belongs_to(method: str, family: str, rank: int, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    learner = learned(method, family)
    lines = export(learner.model, "peft", tmp_path / "lora")
    assert (tmp_path / "lora" / "base").is_dir(), "nobody else has these weights"
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", None)
    assert max(config["rank_pattern"].values()) == rank, "two tasks of rank 2 have a joined rank of 4"
    with quiet():
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(base(family))
        network = peft.PeftModel.from_pretrained(network, str(tmp_path / "lora"))
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "lora")
    close(logits(network, inputs(learner)), learner)
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    with quiet():
        base_of: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lora" / "base")
    assert base_of.generation_config.eos_token_id == list(learner.backbone.model.ends)
    network.generation_config = base_of.generation_config
    assert plainly_written(network, tokenizer, asked) == learner.answer(PROMPTS, Generating(max_tokens=8))
    assert any(line.startswith("rank ") for line in lines)


def test_an_adapter_of_weights_with_a_name_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    learner = learned("inflora")
    monkeypatch.setattr(learner.backbone, "name", "someone/tiny")
    lines = export(learner.model, "peft", tmp_path / "lora")
    assert "AutoModelForCausalLM.from_pretrained('someone/tiny')" in lines[-1]
    assert not (tmp_path / "lora" / "base").exists()
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/tiny"


def test_an_adapter_can_be_the_start_of_a_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    learner = learned("olora")
    export(learner.model, "peft", tmp_path / "lora")
    again: Any = load_backbone(
        str(tmp_path / "lora" / "base"), output="tokens", max_length=64, adapter=str(tmp_path / "lora")
    )
    with torch.no_grad():
        close(again.model.every_logit(inputs(learner)), learner)


def test_tasks_kept_apart_become_a_folder_each_whose_changes_add_up(tmp_path: Path) -> None:
    """A server of several LoRA has both, and each is what its task added."""
    peft = pytest.importorskip("peft")
    import transformers

    learner = learned("sdlora")
    lines = export(learner.model, "peft", tmp_path / "tasks", per_task=True)
    assert [line.partition(":")[0] for line in lines if "random answers" in line] == ["task0", "task1"]
    with quiet():
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(base("Llama"))
        network = peft.PeftModel.from_pretrained(network, str(tmp_path / "tasks" / "task0"), adapter_name="a")
        network.load_adapter(str(tmp_path / "tasks" / "task1"), adapter_name="b")
    network.base_model.set_adapter(["a", "b"])
    close(logits(network, inputs(learner)), learner)


def test_a_truncated_adapter_says_what_that_costs(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lines = export(learned("inflora").model, "peft", tmp_path / "lora", rank=1)
    assert any("gives the highest logit to the same token " in line for line in lines)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert set(config["rank_pattern"].values()) == {1}


# what cannot be exported ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "format", "options", "said"),
    [
        ("gainlora", "hf", {}, "weighs its adapters anew for each answer, so .*; let lamella serve answer with it"),
        ("gainlora", "peft", {}, "weighs its adapters anew for each answer"),
        ("gainlora", "peft", {"per_task": True}, "weighs its adapters anew for each answer"),
        ("inflora", "peft", {"per_task": True}, "keeps no adapter for each task; leave out --per-task"),
        ("inflora", "onnx", {}, "format onnx is for images and texts, and this backbone takes answers; use --format "
                                "hf, peft or adapters"),
        ("inflora", "timm", {}, "format timm is for images, and this backbone takes answers"),
        ("inflora", "gguf", {}, "unknown format 'gguf'"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_in_one_line(
    method: str, format: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=said) as refused:
        export(learned(method).model, format, tmp_path / "out", **options)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_what_gates_keep_from_an_export_is_served(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from lamella.serving.app import create_app

    learner = learned("gainlora")
    learner.save(tmp_path / "gated")
    with TestClient(create_app(tmp_path / "gated", token="t", device="cpu")) as client:
        for prompt in PROMPTS:
            asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8}
            (choice,) = client.post("/v1/chat/completions", json=asked).json()["choices"]
            assert choice["message"]["content"] == learner.answer([prompt], Generating(max_tokens=8))[0]


@pytest.mark.parametrize("method", ["gainlora", "inflora"])
def test_plain_tensors_are_those_of_any_method(method: str, tmp_path: Path) -> None:
    lines = export(learned(method).model, "adapters", tmp_path / "tensors")
    assert "random answers" in lines[0]
    described = json.loads((tmp_path / "tensors" / "learned.json").read_text())
    assert described["tasks"] == ["task 0", "task 1"]


def test_an_export_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamella.learner.export import hf_answers

    def other(model: Any, transform: Any, folder: Path) -> None:
        model.network.get_output_embeddings().weight.data.mul_(1.01)
        real(model, transform, folder)

    real = hf_answers.save_causal
    monkeypatch.setattr(hf_answers, "save_causal", other)
    with pytest.raises(RuntimeError, match="does not compute what the model computes, so it was not kept"):
        export(learned("inflora").model, "hf", tmp_path / "model")
    assert not list(tmp_path.iterdir())
