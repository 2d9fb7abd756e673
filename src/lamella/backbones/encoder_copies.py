"""A file that holds all of a backbone: its tensors, and of a network of texts also what describes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from lamella.backbones.backbone import Backbone
from lamella.backbones.causal_files import CausalFiles, chat_of
from lamella.backbones.encoder_files import EncoderFiles
from lamella.backbones.encoder_tokenizer import tokenizer_of_text
from lamella.backbones.encoders import Encoder
from lamella.backbones.language_model import LanguageModel
from lamella.backbones.pooling import POOLS
from lamella.data.answer_tokens import AnswerTokens
from lamella.data.tokens import TokenTransform

__all__ = ["UNIT", "copy_of", "is_kept_encoder", "read_causal_copy", "read_copy"]

UNIT = "unit"
"""Name of the mark of an encoder whose folder asks for features of length 1."""
KEY = "encoder"
"""Name of what describes the encoder, in the notes of the file."""
CHAT = "chat"
"""Name of what describes the conversations of a language model, within that."""


def copy_of(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the notes of a file that a backbone can be loaded from again as it is now."""
    model, transform = backbone.model, backbone.transform
    if not isinstance(model, Encoder | LanguageModel):
        return model.state_dict(), {}
    transform = cast(TokenTransform | AnswerTokens, transform)
    described: dict[str, Any] = {
        "config": json.loads(model.network.config.to_json_string(use_diff=False)),
        "tokenizer": transform.tokenizer.to_str(),
        "pool": "last" if isinstance(model, LanguageModel) else model.pool,
        "max_length": transform.max_length,
        "pad_id": transform.pad_id,
        UNIT: UNIT in backbone.marks,
    }
    if isinstance(transform, AnswerTokens):
        described[CHAT] = {"template": transform.chat.template, "names": transform.chat.names, "ends": [*_ends(model)]}
    return model.plain_state(), {KEY: described}


def _ends(model: Encoder | LanguageModel) -> tuple[int, ...]:
    return model.ends if isinstance(model, LanguageModel) else ()


def is_kept_encoder(weights: str) -> bool:
    """Whether this is the path of a file that holds all of an encoder, or of a language model."""
    return _described(Path(weights)) is not None


def read_copy(path: Path) -> EncoderFiles | None:
    """What a file says of the encoder that it holds; None where it holds none.

    Raises:
        ValueError: what it says has another form.
    """
    if (found := _described(path)) is None:
        return None
    config, text, pool = found.get("config"), found.get("tokenizer"), found.get("pool")
    length, pad_id = found.get("max_length"), found.get("pad_id")
    described = isinstance(config, dict) and "auto_map" not in config and pool in POOLS
    if not described or not isinstance(text, str) or type(length) is not int or length < 3 or type(pad_id) is not int:
        raise ValueError(f"'{path}' is no copy of an encoder that lamella wrote, or it is damaged; restore it")
    return EncoderFiles(
        cast(dict[str, Any], config),
        tokenizer_of_text(text, path),
        pool,
        (length,),
        pad_id,
        path,
        found.get(UNIT) is True,
    )


def read_causal_copy(path: Path) -> CausalFiles | None:
    """What a file says of the causal language model that it holds; None where it holds none.

    Raises:
        ValueError: what it says has another form.
    """
    if (files := read_copy(path)) is None or (chat := (_described(path) or {}).get(CHAT)) is None:
        return None
    template, names, ends = (
        (chat.get(key) for key in ("template", "names", "ends")) if isinstance(chat, dict) else [""] * 3
    )
    if not isinstance(template, str) or not isinstance(names, dict) or not isinstance(ends, list):
        raise ValueError(f"'{path}' is no copy of a language model that lamella wrote, or it is damaged; restore it")
    return chat_of(files, template, cast(dict[str, str], names), ends)


def _described(path: Path) -> Mapping[str, Any] | None:
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {}).get("notes", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return None
    found = notes.get(KEY) if isinstance(notes, dict) else None
    return found if isinstance(found, dict) else None
