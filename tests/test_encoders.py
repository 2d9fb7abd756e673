"""Encoders of texts by name: what is loaded of a folder, what is refused, and that nothing is fetched or run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from encoder_folders import TEXTS, bert_folder, cached_in_hub, folder_of, sentence_modules, write_json
from encoders import LIKE_BERT
from torch import Tensor

from lamella.backbones import Backbone, backbone_options, describe_layers, load_backbone
from lamella.backbones.from_folder import backbone_table
from lamella.backbones.hub import without_hub
from lamella.backbones.weight_files import WeightsNotFound
from lamella.learner.config.document import complete
from lamella.testing.texts import VOCABULARY, byte_tokenizer

MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def features(backbone: Backbone, texts: list[str] = TEXTS) -> Tensor:
    return backbone(backbone.transform.view()(texts, torch.arange(len(texts))))


@torch.no_grad()
def token_vectors(folder: Path, text: str) -> Tensor:
    """(t, d) of one text without padding, by transformers alone."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = byte_tokenizer().encode(text).ids
    return model(torch.tensor([ids])).last_hidden_state[0]


DEFINITIONS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "mean": ({"pooling_mode_mean_tokens": True}, lambda v: v.mean(0)),
    "first": ({"pooling_mode_cls_token": True}, lambda v: v[0]),
    "last": ({"pooling_mode_lasttoken": True}, lambda v: v[-1]),
    "max": ({"pooling_mode_max_tokens": True}, lambda v: v.amax(0)),
    "new": ({"pooling_mode": "cls"}, lambda v: v[0]),
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_the_pooling_of_sentence_transformers_is_taken_as_it_is_defined(kind: str, tmp_path: Path) -> None:
    pooling, definition = DEFINITIONS[kind]
    folder = sentence_modules(bert_folder(tmp_path / "e"), pooling, "Normalize")
    backbone = load_backbone(str(folder))
    expected = torch.stack([definition(token_vectors(folder, text)) for text in TEXTS])
    assert backbone.width == 32
    torch.testing.assert_close(features(backbone), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_a_text_alone_has_the_vector_that_it_has_beside_longer_ones(tmp_path: Path) -> None:
    for name, (kind, config) in {
        "bert": (transformers.BertModel, transformers.BertConfig(**LIKE_BERT)),
        "gpt2": (transformers.GPT2Model, gpt2_config()),
    }.items():
        backbone = load_backbone(str(folder_of(tmp_path / name, kind, config)))
        together, alone = features(backbone), torch.cat([features(backbone, [text]) for text in TEXTS])
        torch.testing.assert_close(together, alone, rtol=0, atol=2e-5 * float(together.abs().max()))


def gpt2_config() -> Any:
    options = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2Config(vocab_size=VOCABULARY, initializer_range=0.2, **options)


def t5_config() -> Any:
    options: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return transformers.T5Config(vocab_size=VOCABULARY, **options)


def test_a_folder_is_pooled_by_the_mean_and_a_causal_model_by_its_last_token(tmp_path: Path) -> None:
    bert = load_backbone(str(bert_folder(tmp_path / "bert", head=True)))
    gpt2 = load_backbone(str(folder_of(tmp_path / "gpt2", transformers.GPT2LMHeadModel, gpt2_config())))
    t5 = load_backbone(
        str(folder_of(tmp_path / "t5", transformers.T5ForConditionalGeneration, t5_config(), first=False))
    )
    assert [b.model.pool for b in (bert, gpt2, t5)] == ["mean", "last", "mean"]
    assert [b.model.has_class_token for b in (bert, gpt2, t5)] == [True, False, False]
    assert not any("decoder" in key or "classifier" in key or "pooler" in key for key in t5.model.state_dict())
    chosen = load_backbone(str(tmp_path / "bert"), pool="first", normalise="unit")
    torch.testing.assert_close(features(chosen).norm(dim=1), torch.ones(len(TEXTS)))
    assert chosen.weights_sha256 != bert.weights_sha256, "the pooling is a part of what a model is learned on"


def test_the_length_is_the_smallest_limit_that_the_files_name(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    assert length(folder) == 96
    assert length(folder, max_length=40) == 40
    with pytest.raises(ValueError, match=r"max_length = 97, but .* takes 96 tokens at most; use 3 to 96"):
        load_backbone(str(folder), max_length=97)
    write_json(folder / "tokenizer_config.json", {"model_max_length": 64})
    assert length(folder) == 64
    assert length(sentence_modules(folder, MEAN, max_seq_length=48)) == 48
    assert length(folder, max_length=96) == 96, "the network takes more than the files advise"
    roberta = transformers.RobertaConfig(**LIKE_BERT | {"pad_token_id": 1})
    assert length(folder_of(tmp_path / "roberta", transformers.RobertaModel, roberta)) == 94
    assert length(folder_of(tmp_path / "t5", transformers.T5EncoderModel, t5_config(), first=False)) == 256
    long = load_backbone(str(tmp_path / "roberta"))
    assert features(long, ["a" * 500]).isfinite().all()


def length(folder: Path, **options: Any) -> int:
    return load_backbone(str(folder), **options).transform.describe()["max_length"]


def test_texts_are_lower_cased_where_sentence_transformers_does_it(tmp_path: Path) -> None:
    folder = sentence_modules(bert_folder(tmp_path / "e"), MEAN, do_lower_case=True)
    upper, lower = features(load_backbone(str(folder)), ["MY CARD", "my card"])
    assert torch.allclose(upper, lower, atol=1e-6)
    sentence_modules(folder, MEAN)
    upper, lower = features(load_backbone(str(folder)), ["MY CARD", "my card"])
    assert not torch.allclose(upper, lower, atol=1e-3)


def test_a_network_in_a_folder_of_its_own_and_in_several_files_is_found(tmp_path: Path) -> None:
    plain = load_backbone(str(bert_folder(tmp_path / "plain")))
    folder = tmp_path / "parted"
    inner = bert_folder(folder / "0_Transformer")
    transformers.BertModel.from_pretrained(inner).save_pretrained(inner, max_shard_size="20KB")
    (inner / "model.safetensors").unlink()
    assert (inner / "model.safetensors.index.json").is_file()
    sentence_modules(folder, MEAN)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(folder / "modules.json", modules)
    assert load_backbone(str(folder)).weights_sha256 == plain.weights_sha256


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = bert_folder(tmp_path / "e", head=True)
    capfd.readouterr()
    load_backbone(str(folder))
    assert capfd.readouterr() == ("", "")


def test_random_weights_are_drawn_by_the_seed_and_the_name(tmp_path: Path) -> None:
    folder = str(bert_folder(tmp_path / "e"))
    first, again, other = (load_backbone(folder, weights="random", seed=s) for s in (0, 0, 1))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert {row.roles for row in describe_layers(folder)} >= {("query",), ("value",), ("mlp",), ("out",)}
    assert all(row.called for row in describe_layers(folder))


def test_weights_of_another_file_take_the_place_of_the_folders(tmp_path: Path) -> None:
    first, second = bert_folder(tmp_path / "first"), bert_folder(tmp_path / "second", seed=1)
    found = load_backbone(str(first), weights=str(second / "model.safetensors"))
    assert found.weights_sha256 == load_backbone(str(second)).weights_sha256


def change(file: str, **values: Any) -> Callable[[Path], None]:
    """Change values in a JSON file of a folder."""

    def changed(folder: Path) -> None:
        path = folder / file
        write_json(path, (json.loads(path.read_text()) if path.is_file() else {}) | values)

    return changed


def without(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def larger_vocabulary(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["hundreds"])
    tokenizer.save(str(folder / "tokenizer.json"))


def with_dense(folder: Path) -> None:
    sentence_modules(folder, MEAN, "Dense")


def with_two_poolings(folder: Path) -> None:
    sentence_modules(folder, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})


def static(folder: Path) -> None:
    write_json(folder / "modules.json", [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}])


def elsewhere(folder: Path) -> None:
    write_json(folder / "modules.json", [{"path": "../other", "type": "sentence_transformers.models.Transformer"}])


def index_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "../other.safetensors"}})


def without_a_tensor(folder: Path) -> None:
    tensors = load(folder)
    del tensors["encoder.layer.1.output.dense.weight"]
    save(folder, tensors)


def not_finite(folder: Path) -> None:
    tensors = load(folder)
    tensors["encoder.layer.1.output.dense.bias"][0] = torch.inf
    save(folder, tensors)


def load(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def save(folder: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")


def of_images(folder: Path) -> None:
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    transformers.ViTModel(config).save_pretrained(folder)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "code": (change("config.json", auto_map={"AutoModel": "x.Y"}), "asks for code of its own .* which is never run"),
    "tokenizer's code": (
        change("tokenizer_config.json", auto_map={}),
        "tokenizer_config.json' asks for code",
    ),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer"),
    "a broken tokenizer": (lambda f: write_json(f / "tokenizer.json", {}), "describes no tokenizer"),
    "larger vocabulary": (larger_vocabulary, "has ids up to 259, but its network only knows those below 259"),
    "no weights": (without("model.safetensors"), "holds no weights"),
    "a lost tensor": (without_a_tensor, "they lack 'encoder.layer.1.output.dense.weight'"),
    "another shape": (change("config.json", hidden_size=36), "another shape of"),
    "infinite": (not_finite, "numbers in 'encoder.layer.1.output.dense.bias' that are not finite"),
    "quantised": (change("config.json", quantization_config={"quant_method": "gptq"}), "are quantised"),
    "unknown": (change("config.json", model_type="own"), "is of 'own', which transformers .* does not have"),
    "strange sizes": (change("config.json", num_attention_heads=5), "config.json"),
    "images": (of_images, "takes no token ids, so it is no encoder of texts"),
    "dense": (with_dense, "goes on after its pooling with 'Dense'.*choose the pooling with backbone.pool"),
    "two poolings": (with_two_poolings, "'mean' and 'first', which cannot be had; choose one with backbone.pool"),
    "static": (static, "holds no network of transformers but 'StaticEmbedding'"),
    "elsewhere": (elsewhere, "names the folder '../other', which is no folder within it"),
    "index elsewhere": (index_elsewhere, "lists no safetensors files of its folder"),
    "no modules": (lambda f: write_json(f / "modules.json", {}), "is no list of modules"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    damage, text = REFUSED[case]
    folder = bert_folder(tmp_path / "e")
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=text) as told:
        load_backbone(str(folder))
    assert "\n" not in str(told.value)


def test_a_chosen_pooling_does_without_what_follows_it(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "e")
    plain = features(load_backbone(str(folder)))
    for damage in (with_dense, with_two_poolings):
        damage(folder)
        assert torch.equal(features(load_backbone(str(folder), pool="mean")), plain)


def test_pickled_weights_are_read_as_tensors_only(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "e")
    expected, tensors = load_backbone(str(folder)).weights_sha256, load(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert load_backbone(str(folder)).weights_sha256 == expected
    torch.save(tensors | {"more": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_backbone(str(folder))


def test_settings_that_would_fetch_code_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bert_folder(tmp_path / "e")
    plain = features(load_backbone(str(folder)))
    change("config.json", attn_implementation="kernels-community/flash-attn", _attn_implementation="a/b")(folder)
    assert torch.equal(features(load_backbone(str(folder))), plain)


def test_a_folder_with_an_adapter_beside_it_reads_no_other_base(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "e")
    plain = load_backbone(str(folder)).weights_sha256
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "x")})
    assert load_backbone(str(folder)).weights_sha256 == plain


# ---- names and options


def test_options_of_images_are_refused_for_texts_and_the_other_way_round(tmp_path: Path) -> None:
    folder = str(bert_folder(tmp_path / "e"))
    for table, key, kind in (
        ({"name": folder, "size": 32}, "size", "backbones of images, but .* is one of the encoders of texts"),
        (
            {"name": "test_vit", "max_length": 9},
            "max_length",
            "encoders of texts and of language models, but .* the backbones of images",
        ),
        ({"name": "hashed-words", "crop": 1.0}, "crop", "backbones of images, but .* is one of the hashed words"),
        ({"name": "owner/name", "crop": 1.0}, "crop", "backbones of images, but .* is one of the encoders of texts"),
    ):
        expected = f"'backbone.{key}' is an option of {kind}; take it away with backbone.{key}="
        with pytest.raises(ValueError, match=expected):
            complete({"backbone": table, "method": {"name": "nearest-mean"}})
        with pytest.raises(ValueError, match=expected):
            load_backbone(**table)
    with pytest.raises(ValueError, match=r"unknown key 'backbone.sise'; did you mean"):
        complete({"backbone": {"name": "test_vit", "sise": 9}, "method": {"name": "nearest-mean"}})


def test_users_call_an_encoder_by_its_folder_its_name_or_both_with_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bert_folder(tmp_path / "e")
    monkeypatch.chdir(tmp_path)
    assert backbone_table("e") == backbone_table("./e") == {"name": str(folder)}
    assert backbone_table("e+lora") == {"name": str(folder), "adapter": str(tmp_path / "lora")}
    assert backbone_table("owner/name") == {"name": "owner/name"}
    assert backbone_table("owner/name+lora") == {"name": "owner/name", "adapter": str(tmp_path / "lora")}
    sentence_modules(folder, MEAN)
    assert backbone_table("e") == {"name": str(folder)}
    table = complete({"backbone": {"name": "./e"}, "method": {"name": "nearest-mean"}})["backbone"]
    assert table["name"] == str(folder)


def test_a_plain_name_is_a_folder_below_the_data_unless_timm_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path))
    for name in ("mine", "test_vit", "owner/mine"):
        bert_folder(tmp_path / name)
    assert load_backbone("mine").transform.noun == "text"
    assert load_backbone("owner/mine").transform.noun == "text"
    assert "size" in backbone_options({"name": "test_vit"})
    with pytest.raises(ValueError, match=r"unknown backbone 'other'; .*an encoder of texts is called owner/name"):
        load_backbone("other")
    with pytest.raises(FileNotFoundError, match=r"there is no folder './other'"):
        load_backbone("./other")


# ---- the hub


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the questions to the hub, which fail; its cache is empty."""
    questions: list[str] = []

    def ask(name: str, **options: object) -> None:
        questions.append(name)
        raise ConnectionError("no network in this test")

    for function in ("model_info", "snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, function, ask)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAMELLA_DATA", raising=False)
    return questions


def test_the_hub_is_asked_once_and_its_silence_is_one_line(asked: list[str]) -> None:
    with pytest.raises(WeightsNotFound) as told:
        load_backbone("owner/name")
    assert str(told.value) == (
        "the encoder 'owner/name' is not on this machine ($LAMELLA_DATA is not set), and the hub cannot be reached (no "
        "network in this test); give a folder that holds one with --backbone FOLDER, put it into a folder 'owner/name' "
        "of the folder that $LAMELLA_DATA names, or do without an encoder with --backbone hashed-words"
    )
    assert asked == ["owner/name"]


def test_the_hub_is_not_asked_without_it_nor_for_what_its_cache_has(asked: list[str], tmp_path: Path) -> None:
    with without_hub(), pytest.raises(WeightsNotFound, match="a model that is not trusted has nothing fetched"):
        load_backbone("owner/name")
    folder = sentence_modules(bert_folder(tmp_path / "e"), MEAN)
    expected = load_backbone(str(folder)).weights_sha256
    cached_in_hub(folder, tmp_path / "cache", "owner/name")
    assert load_backbone("owner/name").weights_sha256 == expected
    with without_hub():
        assert load_backbone("owner/name").weights_sha256 == expected
    assert not asked


def test_only_the_files_that_are_needed_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    folder = sentence_modules(bert_folder(tmp_path / "e"), MEAN)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
    others = ["pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "custom.py", "README.md", "tf_model.h5"]
    siblings = [huggingface_hub.hf_api.RepoSibling(rfilename=name) for name in [*files, *others]]
    fetched: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        fetched.append(sorted(allow_patterns))
        return str(folder)

    answer = huggingface_hub.hf_api.ModelInfo(id="owner/name", siblings=[])
    answer.siblings = siblings
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, timeout: answer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_backbone("owner/name").weights_sha256 == load_backbone(str(folder)).weights_sha256
    assert fetched == [sorted(files)]
    load_backbone("owner/name", weights="random")
    assert fetched[1] == sorted(set(files) - {"model.safetensors"}), "layers are listed without the weights"


# ---- adapters of PEFT


@pytest.mark.parametrize("kind", ["plain", "head", "gpt2"])
def test_an_adapter_of_peft_computes_what_peft_computes(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    if kind == "gpt2":
        folder = folder_of(tmp_path / "e", transformers.GPT2LMHeadModel, gpt2_config())
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
        base = transformers.AutoModel.from_pretrained(folder)
    elif kind == "head":
        folder = bert_folder(tmp_path / "e", head=True)
        config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
        base = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        folder = bert_folder(tmp_path / "e")
        config = peft.LoraConfig(r=2, target_modules=["query", "dense"], init_lora_weights=False)
        base = transformers.AutoModel.from_pretrained(folder)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "lora")
    found = features(load_backbone(str(folder), adapter=str(tmp_path / "lora"), pool="first"), TEXTS[1:2])
    inner = model.base_model.model.bert if kind == "head" else model
    with torch.no_grad():
        expected = inner(torch.tensor([byte_tokenizer().encode(TEXTS[1]).ids])).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    plain = features(load_backbone(str(folder), pool="first"), TEXTS[1:2])
    if kind != "gpt2":  # the first token of a causal model still differs, by its value
        assert float((found - plain).abs().max()) > 1e-3


def test_an_encoder_needs_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bert_folder(tmp_path / "e")
    monkeypatch.setattr("lamella.backbones.text_encoders.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"install it with: pip install 'lamella\[text\]'"):
        load_backbone(str(folder))
    shutil.rmtree(folder)
