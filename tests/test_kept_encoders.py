"""Models on encoders of texts: they load without the folder, refuse another tokenizer, and read nothing elsewhere."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoder_folders import TEXTS, bert_folder, folder_of, sentence_modules
from encoders import LIKE_BERT
from test_encoders import MEAN, asked, features, gpt2_config, t5_config
from tokenizers import Tokenizer, normalizers

from lamella import Learner
from lamella.backbones import load_backbone
from lamella.learner.model import load

__all__ = ["asked"]

DEBERTA = LIKE_BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1}


def saved(model: Path, folder: Path, **options: Any) -> Learner:
    learner = Learner.create(backbone={"name": str(folder), **options}, method="nearest-mean", fit={"device": "cpu"})
    learner.save(model)
    return learner


def kinds(folder: Path, kind: str) -> Path:
    """Networks whose tensors are laid out in another way while they learn, or share memory."""
    if kind == "gpt2":
        return folder_of(folder, transformers.GPT2Model, gpt2_config())
    if kind == "t5":
        return folder_of(folder, transformers.T5EncoderModel, t5_config(), first=False)
    if kind == "deberta":
        config = transformers.DebertaV2Config(**DEBERTA, share_att_key=True)
        return folder_of(folder, transformers.DebertaV2Model, config)
    return sentence_modules(bert_folder(folder), MEAN, max_seq_length=48, do_lower_case=True)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "deberta"])
def test_a_model_loads_without_the_folder_of_its_encoder(kind: str, tmp_path: Path) -> None:
    folder = kinds(tmp_path / "e", kind)
    learner = saved(tmp_path / "model", folder, max_length=24)
    expected = features(learner.backbone)
    shutil.rmtree(folder)
    for trusted in (True, False):
        again = Learner.load(tmp_path / "model", device="cpu", trusted=trusted)
        assert again.backbone.weights_sha256 == learner.backbone.weights_sha256
        assert torch.equal(features(again.backbone), expected)
    again.save(tmp_path / "model")
    assert len([*(tmp_path / "model").glob("backbone-*.safetensors")]) == 1
    assert load(tmp_path / "model", only_facts=True).backbone.width == 32


def test_a_model_keeps_an_adapter_that_was_added_to_its_encoder(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = bert_folder(tmp_path / "e")
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    peft.get_peft_model(transformers.AutoModel.from_pretrained(folder), config).save_pretrained(tmp_path / "lora")
    learner = saved(tmp_path / "model", folder, adapter=str(tmp_path / "lora"))
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "lora")
    again = Learner.load(tmp_path / "model", device="cpu", trusted=False)
    assert torch.equal(features(again.backbone), features(learner.backbone))


def test_a_plain_name_below_the_data_is_not_copied_and_a_changed_tokenizer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_DATA", str(tmp_path / "data"))
    folder = bert_folder(tmp_path / "data" / "mine")
    learner = Learner.create(backbone="mine", method="nearest-mean", fit={"device": "cpu"})
    learner.save(tmp_path / "model")
    assert not [*(tmp_path / "model").glob("backbone-*")]
    assert Learner.load(tmp_path / "model", device="cpu", trusted=False).backbone.name == "mine"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
    Learner.load(tmp_path / "model", device="cpu")  # it is written in another way and does the same
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match="was learned on other weights or another tokenizer of mine"):
        Learner.load(tmp_path / "model", device="cpu")


def rewritten(model: Path, **table: Any) -> None:
    """Change [backbone] in a model's folder as a stranger could, with the right checksum."""
    pointer = json.loads((model / "lamella.json").read_text())
    version = model / "versions" / "1.json"
    manifest = json.loads(version.read_text())
    manifest["backbone_copy"] = table.pop("copy", manifest["backbone_copy"])
    manifest["config"]["backbone"] |= table
    version.write_text(json.dumps(manifest))
    pointer["versions"]["1"] = sha256(version.read_bytes()).hexdigest()
    (model / "lamella.json").write_text(json.dumps(pointer))


def test_a_strangers_model_names_no_folder_elsewhere(tmp_path: Path, asked: list[str]) -> None:
    folder = bert_folder(tmp_path / "e")
    saved(tmp_path / "model", folder)
    copy = next((tmp_path / "model").glob("backbone-*.safetensors"))
    shutil.copy(folder / "model.safetensors", copy)  # tensors without what describes the encoder
    for name in (str(folder), "./e", "a/../../e", "~/e"):
        rewritten(tmp_path / "model", name=name)
        with pytest.raises(ValueError, match=f"the name '{name}' of its backbone is a path"):
            Learner.load(tmp_path / "model", trusted=False)
    rewritten(tmp_path / "model", name="owner/name", copy=None)
    with pytest.raises(FileNotFoundError, match="a model that is not trusted has nothing fetched from the hub"):
        Learner.load(tmp_path / "model", trusted=False)
    assert not asked
    with pytest.raises(FileNotFoundError, match="the hub cannot be reached"):
        Learner.load(tmp_path / "model")


def test_a_damaged_copy_is_told(tmp_path: Path) -> None:
    from lamella.common.files import write_tensors

    path = tmp_path / "copy.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, {"encoder": {"config": [], "tokenizer": "{}"}})
    with pytest.raises(ValueError, match="is no copy of an encoder that lamella wrote, or it is damaged"):
        load_backbone("mine", weights=str(path))


def test_features_of_a_copy_are_those_of_texts_of_all_lengths(tmp_path: Path) -> None:
    learner = saved(tmp_path / "model", kinds(tmp_path / "e", "bert"))
    again = Learner.load(tmp_path / "model", device="cpu")
    for text in (*TEXTS, "long " * 100, ""):
        assert torch.equal(features(learner.backbone, [text]), features(again.backbone, [text]))
