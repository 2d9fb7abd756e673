"""The program predict.py of an export of texts: what the model computes, in lines that anyone can read and change."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.backbones.encoder_network import quiet
from lamella.backbones.encoders import Encoder
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK
from lamella.learner.export.transformers_files import loading
from lamella.methods.shared.plain_classifier import PlainClassifier

__all__ = ["CLASSIFIER", "POOLED", "PROGRAM", "logits_of", "program"]

PROGRAM, CLASSIFIER = "predict.py", "classifier.safetensors"

_TEXT = '''\
"""Prints the label of each text, with its confidence: python predict.py TEXT ..."""

import json
import sys
import unicodedata
from pathlib import Path

import torch
{imports}

HERE = Path(__file__).parent
tokenizer = AutoTokenizer.from_pretrained(HERE)
model = {model}.eval()
classifier = load_file(HERE / "{classifier}")
labels = json.loads((HERE / "config.json").read_text(encoding="utf-8"))["id2label"]


@torch.no_grad()
def logits(input_ids, attention_mask):
    mask = attention_mask[..., None]
    tokens = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    {steps}
    return {scores}


if __name__ == "__main__":
    texts = [unicodedata.normalize("NFC", text).strip() for text in sys.argv[1:]] or sys.exit(__doc__)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    scores = logits(batch["input_ids"], batch["attention_mask"])
    for text, row in zip(texts, (scores / {temperature!r}).softmax(1)):
        confidence, best = row.max(0)
        print(f"{{labels[str(int(best))]}}\\t{{confidence:.3f}}\\t{{text}}")
'''
POOLED = {
    "mean": "(tokens * mask).sum(1) / mask.sum(1)",
    "first": "tokens[:, 0]",
    "last": "tokens[torch.arange(len(tokens)), attention_mask.sum(1) - 1]",
    "max": "tokens.masked_fill(mask == 0, -torch.inf).amax(1)",
}

_CURVED = [
    'axes = (features @ classifier["curves.rotation"].T).square() @ classifier["curves.widths"].T',
    'along = torch.einsum("nd,ckd->nck", features, classifier["curves.directions"]) - classifier["curves.offsets"]',
    "along = along.square().sum(2)",
]
"""The steps of a quadratic discriminant of low rank; see `memory.low_rank.Curves`."""


def program(encoder: Encoder, classifier: PlainClassifier, temperature: float, base: str = "") -> str:
    """Return the text of the program.

    Args:
        encoder: the encoder.
        classifier: the classifier on its features, whose state lies beside the program.
        temperature: of the softmax.
        base: an expression that gives the place of the weights that a LoRA in the program's folder belongs to; "" where
            that folder holds whole weights.
    """
    steps = [f"features = {POOLED[encoder.pool]}"]
    steps += ["features = normalize(features, dim=1)"] * encoder.unit
    steps += ["features = features.double()"] * (classifier.weight.dtype == torch.float64)
    steps += ["features = normalize(features, dim=1)"] * classifier.unit
    if classifier.projection is not None:
        steps += ['features = torch.relu(features @ classifier["projection"].T)']
    scores = 'features @ classifier["weight"].T + classifier["bias"]'
    if classifier.curves is not None:
        steps += _CURVED
        scores += " + along / 2 - axes / 2"
    kind, network = loading(encoder, base or "HERE")
    imports = [
        *["from peft import PeftModel"] * bool(base),
        "from safetensors.torch import load_file",
        *["from torch.nn.functional import normalize"] * (encoder.unit or classifier.unit),
        f"from transformers import {', '.join(sorted({kind, 'AutoTokenizer'}))}",
    ]
    return _TEXT.format(
        imports="\n".join(imports),
        model=f"PeftModel.from_pretrained({network}, HERE)" if base else network,
        classifier=CLASSIFIER,
        steps="\n    ".join(steps),
        scores=scores,
        temperature=temperature,
    )


def logits_of(file: Path) -> Callable[[Batch], Tensor]:
    """Run a program without texts, and return what it computes of a batch."""
    with quiet():
        names: dict[str, Any] = runpy.run_path(str(file), run_name="predict")
    return lambda x: names["logits"](x[IDS], x[MASK].long())
