"""Causal language models as backbones: what each target costs, where branches attach, and what is loaded of files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoder_folders import bert_folder, write_json
from torch import Tensor

from lamella.adapters.adapter import grow, watch
from lamella.backbones import Backbone, backbone_options, load_backbone
from lamella.backbones.encoder_copies import copy_of
from lamella.backbones.from_folder import backbone_table
from lamella.backbones.language_model import LanguageModel, language_model
from lamella.common.files import write_tensors
from lamella.data.answer_tokens import TARGET, AnswerTokens
from lamella.data.answers import PLAIN_TEXT, USER, Answer, AnswerSet, Turn
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK
from lamella.memory.subspace import SecondMoment
from lamella.testing import tiny_bert
from lamella.testing.answers import CHAT_SPECIAL, CHATML, causal_config, chat_tokenizer, tiny_causal

FAMILIES = ("GPT2", "Llama", "Qwen2")
ANSWERS = [Answer.to("a", "b"), Answer.to("what is it?", "it is that"), Answer((Turn(PLAIN_TEXT, "once upon a time"),))]


def batch_of(backbone: Backbone, answers: list[Answer] = ANSWERS) -> Batch:
    x = AnswerSet(answers).batch(range(len(answers)), backbone.transform.view())
    assert isinstance(x, Batch)
    return x


def losses(backbone: Backbone, x: Batch) -> Tensor:
    return backbone.run(x, language_model(backbone.model, "a test").losses)


@torch.no_grad()
def costs(network: Any, transform: Any, answer: Answer) -> Tensor:
    """What each target of one answer costs, by transformers alone and without padding."""
    tokens = transform.encode(answer)
    ids = torch.tensor([tokens.ids])
    told = network(ids).logits[0].log_softmax(1)
    return torch.stack([-told[i - 1, tokens.ids[i]] for i, is_target in enumerate(tokens.target) if is_target])


# what it computes


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_each_answer_alone(family: str) -> None:
    backbone = tiny_causal(family)
    x = batch_of(backbone)
    assert not x[MASK].all(), "some answers are padded"
    network: Any = backbone.model.network
    expected = torch.cat([costs(network, backbone.transform, answer) for answer in ANSWERS])
    found = losses(backbone, x)
    assert len(found) == int(x[TARGET].sum())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_logits_of_the_vocabulary_are_computed_where_targets_are() -> None:
    backbone = tiny_causal()
    network: Any = backbone.model.network
    rows: list[int] = []
    handle = network.lm_head.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[:-1].numel()))
    x = batch_of(backbone)
    losses(backbone, x)
    backbone(x)
    handle.remove()
    assert rows == [int(x[TARGET].sum())], "and none for features"
    assert network(x[IDS]).logits.shape[:2] == x[IDS].shape, "the network is as it was afterwards"


def test_what_a_network_does_behind_its_head_stays() -> None:
    backbone = tiny_causal("Gemma2", head_dim=8, final_logit_softcapping=1.5, sliding_window=64)
    network: Any = backbone.model.network
    expected = costs(network, backbone.transform, ANSWERS[1])
    torch.testing.assert_close(losses(backbone, batch_of(backbone, ANSWERS[1:2])), expected, rtol=0, atol=2e-5)
    logits = language_model(backbone.model, "a test").logits(batch_of(backbone))
    assert logits.abs().max() <= 1.5


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_attach_by_role_and_change_what_is_written(family: str) -> None:
    backbone = tiny_causal(family)
    places = backbone.places()
    assert {role for place in places for role in place.roles} == {"query", "key", "value", "out", "mlp"}
    assert not any("head" in place.name for place in places)
    x = batch_of(backbone)
    before = losses(backbone, x)
    sites = backbone.sites("key", "value")
    assert len(sites) == 4
    branches = grow(sites, "new", 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(losses(backbone, x), before)
    for branch in branches:
        branch.B.data.fill_(0.3)
    assert (losses(backbone, x) - before).abs().max() > 1e-3
    branches[0].B.requires_grad_(True)
    losses(backbone, x).mean().backward()
    assert branches[0].B.grad is not None
    assert branches[0].B.grad.abs().max() > 0


def test_padding_is_no_input_of_a_layer() -> None:
    backbone = tiny_causal()
    sites = backbone.sites("key")
    moments: list[Tensor] = []
    for more in (0, 8, 40):
        x = batch_of(backbone)
        padded = Batch({name: torch.nn.functional.pad(tensor, (0, more)) for name, tensor in x.tensors.items()})
        with watch(sites, lambda layer: SecondMoment(layer.weight.shape[1], torch.float64)) as seen:
            backbone.show(padded, sites)
        moments.append(torch.stack([moment.mean for moment in seen.values()]))
        torch.testing.assert_close(losses(backbone, padded), losses(backbone, x), rtol=0, atol=2e-5)
    for moment in moments[1:]:
        torch.testing.assert_close(moment, moments[0], rtol=1e-5, atol=1e-6)


def test_a_later_token_changes_nothing_of_an_earlier_one() -> None:
    backbone = tiny_causal()
    one, other = (batch_of(backbone, [Answer.to("ab", f"cd{end}")]) for end in ("e", "f"))
    torch.testing.assert_close(losses(backbone, one)[:2], losses(backbone, other)[:2], rtol=0, atol=1e-6)
    assert losses(backbone, one)[2] != losses(backbone, other)[2]


def test_a_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="perplexity needs a language model as its backbone, and Encoder"):
        language_model(tiny_bert().model, "perplexity")


# what is loaded


def causal_folder(folder: Path, family: str = "Llama", *, template: str | None = None, **options: Any) -> Path:
    """A folder of transformers with a model of random weights and a tokenizer of bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(causal_config(family, **options)).save_pretrained(folder)
    chat_tokenizer().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "[SEP]", "pad_token": {"content": "[PAD]"}})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def load(name: Path, **options: Any) -> Backbone:
    return load_backbone(str(name), output="tokens", **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_is_a_language_model(tmp_path: Path, family: str) -> None:
    backbone = load(causal_folder(tmp_path / "m", family, template=CHATML, tie_word_embeddings=family != "Qwen2"))
    assert isinstance(backbone.model, LanguageModel)
    transform: Any = backbone.transform
    assert (backbone.transform.noun, backbone.width, transform.max_length) == ("answer", 32, 128)
    assert transform.chat.template == CHATML
    assert backbone.model.ends == (2, 4), "the end of a text and that of an answer"
    assert transform.encode(ANSWERS[0]).ids[0] == 3
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    expected = torch.cat([costs(network, transform, answer) for answer in ANSWERS])
    found = losses(backbone, batch_of(backbone))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    state, own = backbone.model.plain_state(), network.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)


def test_templates_are_read_where_they_stand(tmp_path: Path) -> None:
    folder = causal_folder(tmp_path / "m")
    assert load(folder).transform.chat.template.startswith("{{ bos_token }}")  # type: ignore[attr-defined]
    settings = {
        "eos_token": "[SEP]",
        "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}],
    }
    write_json(folder / "tokenizer_config.json", settings)
    assert load(folder).transform.chat.template == "y"  # type: ignore[attr-defined]
    write_json(folder / "generation_config.json", {"eos_token_id": [7, 2]})
    model: Any = load(folder, max_length=20).model
    assert model.ends == (2, 7)
    assert load(folder).weights_sha256 != load(folder, max_length=20).weights_sha256, "what answers depend on is marked"


def test_what_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    bert = bert_folder(tmp_path / "bert")
    with pytest.raises(ValueError, match="is no language model, or its weights are not whole: they lack 'cls"):
        load(bert)
    with pytest.raises(ValueError, match="is no causal language model: its tokens see those behind them"):
        load(bert, weights="random")
    vit = tmp_path / "vit"
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.ViTModel(transformers.ViTConfig(**options)).save_pretrained(vit)
    chat_tokenizer().save(str(vit / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"\(vit\) is no language model, so it writes no answers"):
        load(vit)


def test_folders_that_lack_something_or_bring_code_are_refused(tmp_path: Path) -> None:
    folder = causal_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"auto_map": {"AutoModel": "x.Y"}})
    with pytest.raises(ValueError, match="asks for code of its own"):
        load(folder)
    write_json(folder / "config.json", config)
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match="ids up to 261, but its network only knows those below 261"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        load(folder)


def test_options_of_other_backbones_are_refused(tmp_path: Path) -> None:
    folder = causal_folder(tmp_path / "m")
    with pytest.raises(
        ValueError, match=r"'backbone.pool' is an option of .* encoders of texts, but .* language models"
    ):
        load(folder, pool="mean")
    with pytest.raises(ValueError, match=r"'backbone.output' is an option of language models"):
        backbone_options({"name": str(folder), "output": "features"})
    assert load(folder, weights="random", seed=1).weights_sha256 != load(folder, weights="random").weights_sha256


@pytest.mark.parametrize("name", ["fractal-vit-micro", "resnet20", "vit_tiny_patch16_224", "hashed-words"])
def test_other_backbones_give_no_tokens(name: str) -> None:
    with pytest.raises(ValueError, match=f"output=tokens asks for a language model, and '{name}' is none; name one"):
        backbone_options({"name": name, "output": "tokens"})


def test_the_same_folder_is_an_encoder_of_texts_without_its_head(tmp_path: Path) -> None:
    folder = causal_folder(tmp_path / "m")
    assert load_backbone(str(folder)).transform.noun == "text"


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_a_copy_holds_all_of_a_language_model(tmp_path: Path, family: str) -> None:
    original = load(causal_folder(tmp_path / "m", family, template=CHATML))
    write_tensors(tmp_path / "copy.safetensors", *copy_of(original))
    again = load(Path("gone"), weights=str(tmp_path / "copy.safetensors"))
    assert again.weights_sha256 == original.weights_sha256
    assert torch.equal(losses(again, batch_of(again)), losses(original, batch_of(original)))
    assert again.model.ends == original.model.ends


def test_an_adapter_of_peft_is_added(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = causal_folder(tmp_path / "m")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    lora = peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, lora).eval()
    model.save_pretrained(tmp_path / "lora")
    backbone = load(folder, adapter=str(tmp_path / "lora"))
    expected = torch.cat([costs(model, backbone.transform, answer) for answer in ANSWERS])
    torch.testing.assert_close(losses(backbone, batch_of(backbone)), expected, rtol=0, atol=1e-4)


# GGUF


def gguf_file(path: Path, folder: Path) -> Path:
    """Write a Llama of transformers and its tokenizer as a GGUF file, as llama.cpp lays it out."""
    gguf: Any = pytest.importorskip("gguf")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config: Any = network.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary = json.loads(chat_tokenizer().to_str())["model"]["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    never = chr(256)  # the byte 0
    for token in (2 * never, "<|endoftext|>"):  # the second stands for unknown ones in all such files
        vocabulary[token] = len(vocabulary)
    writer.add_token_list(list(vocabulary))
    writer.add_token_types([3 if token in CHAT_SPECIAL or "<|e" in token else 1 for token in vocabulary])
    writer.add_token_merges([f"{never} {never}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_chat_template(CHATML)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, tensor in network.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():  # llama.cpp turns pairs of neighbours, transformers the two halves
            if part in key:
                tensor = tensor.reshape(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    folder = causal_folder(tmp_path / "m", template=CHATML, tie_word_embeddings=False, vocab_size=263)
    path = gguf_file(tmp_path / "tiny.gguf", folder)
    table = backbone_table(str(path))
    assert table == {"name": str(path), "output": "tokens"}
    found, expected = load_backbone(**table), load(folder)
    assert isinstance(found.transform, AnswerTokens)
    assert found.transform.encode(ANSWERS[1]).ids == expected.transform.encode(ANSWERS[1]).ids  # type: ignore[attr-defined]
    assert found.transform.chat.prompt([Turn(USER, "a")]) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    asked = ANSWERS[:2]
    of_folder = losses(expected, batch_of(expected, asked))
    torch.testing.assert_close(losses(found, batch_of(found, asked)), of_folder, rtol=0, atol=2e-5)
    write_tensors(tmp_path / "copy.safetensors", *copy_of(found))
    path.unlink()
    again = load(path, weights=str(tmp_path / "copy.safetensors"))
    assert again.weights_sha256 == found.weights_sha256, "read once and kept"


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="cannot be read as a GGUF file of a language model"):
        load(tmp_path / "bad.gguf")
