"""Small language models with random weights in folders, and files of answers for them."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from encoder_folders import write_json

from lamella.backbones.encoder_network import quiet
from lamella.cli import main
from lamella.testing.answers import CHATML, causal_config, chat_tokenizer, tiny_network

__all__ = ["SETTINGS", "answers_file", "learned_assistant", "llama_folder", "seq2seq_folder"]

SETTINGS = (
    "backbone.max_length=64",
    "method.energy=0.8",
    "method.rank=4",
    "method.lr=0.02",
    "method.epochs=6",
    "fit.device=cpu",
)
"""Settings of a new model by the shipped configuration, with which the small Llama learns a little."""


def llama_folder(place: Path) -> Path:
    """A folder of transformers with a small Llama on bytes, and a chat template."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(causal_config("Llama")).save_pretrained(place)
    chat_tokenizer().save(str(place / "tokenizer.json"))
    write_json(place / "tokenizer_config.json", {"eos_token": "[SEP]", "chat_template": CHATML})
    return place


def answers_file(path: Path, letters: str, count: int = 15, *, test: int = 0) -> Path:
    """A file of prompts and responses, the last of which are a test part; other letters make others."""
    rows = [
        {
            "prompt": f"{letters}{i}",
            "response": f"{letters[i % len(letters)] * 3}!",
            "choices": [x * 3 + "!" for x in letters],
        }
        for i in range(count + test)
    ]
    if test:
        rows = [row | {"split": "train" if i < count else "test"} for i, row in enumerate(rows)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def learned_assistant(place: Path, count: int = 15, *settings: str) -> Path:
    """A model, in a folder of `place`, that the command line has taught so many answers."""
    model = place / "assistant"
    command = ["lamella", "learn", model, answers_file(place / "first.jsonl", "ab", count)]
    command += ["--backbone", llama_folder(place / "base"), *SETTINGS, *settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return model


def seq2seq_folder(place: Path, family: str) -> Path:
    """A folder of transformers with a small T5 or BART on bytes; texts begin with [CLS] and end with [SEP]."""
    with quiet():
        tiny_network(family).save_pretrained(place)
    chat_tokenizer().save(str(place / "tokenizer.json"))
    write_json(place / "tokenizer_config.json", {"eos_token": "[SEP]", "pad_token": "[PAD]"})
    return place
