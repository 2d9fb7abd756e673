"""Requests to a service desk, a model that knows some kinds of them, and what tests of a served model say to it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from lamella.data.sources.parts import keep_classes
from lamella.data.sources.requests import load_requests
from lamella.data.texts import TextSet
from lamella.learner.learner import Learner
from lamella.learner.next_task import as_next_task
from lamella.serving.limits import Limits

KNOWN, NEW = ("broken device", "holiday", "pay slip"), ("heating", "visa")
LIMITS = Limits(
    predict_mb=1, learn_mb=2, unpacked_mb=4, texts=40, characters=500, table_mb=0.1, table_lines=300, batch_tokens=256
)


def texts_of(*classes: str, test: bool = False) -> list[tuple[str, str]]:
    """Texts with the names of their classes."""
    source = keep_classes(load_requests(), list(classes))
    part: Any = source.test if test else source.train
    return [(text, source.class_names[label]) for text, label in zip(part.texts, part.labels.tolist(), strict=True)]


def taught_model(folder: Path, backbone: str = "hashed-words", method: Any = "nearest-mean") -> Path:
    """A model that knows some kinds of requests, in a new folder below `folder`."""
    learner = Learner.create(backbone=backbone, method=method, fit={"device": "cpu"})
    task, held_back = as_next_task(keep_classes(load_requests(), list(KNOWN)), learner.model)
    learner.learn(task, held_back=held_back)
    learner.save(folder / "model")
    return folder / "model"


def encoder_folder(folder: Path) -> Path:
    """A tiny encoder with random weights and tokens of bytes, as transformers stores it."""
    import torch
    from transformers import BertConfig, BertModel

    from lamella.testing.texts import VOCABULARY, byte_tokenizer

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=VOCABULARY, intermediate_size=64, initializer_range=0.2, **sizes)
    BertModel(config).save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def own_predictions(model: Path, texts: list[str], top: int = 5) -> Any:
    return Learner.load(model, device="cpu").predict(TextSet.unlabelled(texts), top=top)


def table(rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> bytes:
    """The rows as CSV."""
    file = io.StringIO()
    csv.writer(file).writerows([header, *rows])
    return file.getvalue().encode()


def json_lines(rows: list[tuple[str, str]]) -> bytes:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()


def ask(client: TestClient, *texts: Any, **more: Any) -> Any:
    return client.post("/predict", json={"texts": list(texts)}, **more)
