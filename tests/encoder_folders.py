"""Folders of small encoders with random weights, as transformers, sentence-transformers and the hub lay them out."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from encoders import LIKE_BERT

from lamella.testing.texts import byte_tokenizer

__all__ = ["TEXTS", "bert_folder", "cached_in_hub", "folder_of", "sentence_modules", "write_json"]

TEXTS = ["a", "when does the next bus to the harbour leave?", "my card has not come", "Ünïcode 42"]


def bert_folder(folder: Path, *, head: bool = False, seed: int = 0, **options: Any) -> Path:
    """A BERT on bytes; with `head`, as it lies within a classifier."""
    kind = transformers.BertForSequenceClassification if head else transformers.BertModel
    return folder_of(folder, kind, transformers.BertConfig(**LIKE_BERT | options), seed=seed)


def folder_of(folder: Path, kind: Any, config: Any, *, seed: int = 0, first: bool = True) -> Path:
    """A network of transformers with random weights, and a tokenizer of bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).eval().save_pretrained(folder)
    byte_tokenizer(first=first).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"pad_token": "[PAD]", "model_max_length": 10**30})
    return folder


def sentence_modules(folder: Path, pooling: dict[str, Any], *further: str, **settings: Any) -> Path:
    """Make a folder one of sentence-transformers.

    Args:
        folder: of transformers.
        pooling: the content of 1_Pooling/config.json.
        further: kinds of modules that follow.
        settings: the content of sentence_bert_config.json.
    """
    kinds = ["Transformer", "Pooling", *further]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", settings)
    return folder


def cached_in_hub(folder: Path, cache: Path, name: str) -> None:
    """Put a folder into the hub's cache as if it came from there."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("0" * 40))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
