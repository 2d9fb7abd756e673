"""Causal language models in GGUF files, whose weights are mostly quantised: read by transformers, made float32."""

import json
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamella.backbones.causal_files import CausalFiles, chat_of
from lamella.backbones.encoder_files import EncoderFiles
from lamella.common.checks import first_line

__all__ = ["is_gguf", "read_gguf"]


def is_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def read_gguf(path: Path, *, weights: bool = True) -> tuple[CausalFiles, dict[str, Tensor] | None]:
    """Return what describes the model of a GGUF file, and its tensors in float32 by the names of transformers.

    Args:
        path: of the file.
        weights: whether the tensors are wanted, too.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the package gguf is not installed.
        ValueError: the file cannot be read, or transformers cannot read a model of its kind.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file '{path}'; give a GGUF file, the folder of a model, or its owner/name"
        )
    if find_spec("gguf") is None:
        raise ModuleNotFoundError("GGUF files need the package gguf; install it with: pip install 'lamella[gguf]'")
    try:
        return _read(path, weights)
    except Exception as error:  # transformers and gguf raise errors of many kinds for files that they do not know
        raise ValueError(f"'{path}' cannot be read as a GGUF file of a language model ({first_line(error)})") from error


def _read(path: Path, weights: bool) -> tuple[CausalFiles, dict[str, Tensor] | None]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    folder, file = str(path.parent), path.name
    options: dict[str, Any] = {"gguf_file": file, "local_files_only": True, "trust_remote_code": False}
    config: Any = AutoConfig.from_pretrained(folder, **options)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
    described = json.loads(config.to_json_string(use_diff=False))
    described.pop("quantization_config", None)  # the tensors are made float32
    pad = tokenizer.pad_token_id
    files = EncoderFiles(described, tokenizer.backend_tokenizer, "last", (), pad if type(pad) is int else None, path)
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    chat = chat_of(files, tokenizer.chat_template, names)
    if not weights:
        return chat, None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with redirect_stderr(StringIO()):  # a bar that nothing else keeps from the terminal
        found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model, torch_dtype=torch.float32)
    return chat, found["tensors"]
