"""Encoders of texts: a network of transformers by its name, its folder, or a copy of it, as a backbone."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lamella.adapters.few_bits import STORAGES, store_in
from lamella.backbones.backbone import Backbone
from lamella.backbones.drawing import drawn_by
from lamella.backbones.encoder_copies import UNIT, read_copy
from lamella.backbones.encoder_files import EncoderFiles, read_encoder, read_weights
from lamella.backbones.encoder_network import build_network, longest_text, quiet, sees_ahead, vocabulary_of
from lamella.backbones.encoder_places import encoder_folder
from lamella.backbones.encoder_tokenizer import tokenizer_digest
from lamella.backbones.encoders import Encoder, has_class_token
from lamella.backbones.peft_lora import add_peft_lora
from lamella.backbones.pooling import POOLS
from lamella.common.checks import check_one_of, first_line
from lamella.data.tokens import TokenTransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["build_encoder", "check_installed", "length_and_padding"]

USUAL_LENGTH = 256
"""Longer texts than this many tokens are cut, where no other length is chosen."""


def build_encoder(
    name: str,
    *,
    weights: str = "pretrained",
    adapter: str | None = None,
    pool: str = "auto",
    max_length: int | None = None,
    normalise: str = "none",
    storage: str = "float32",
    seed: int = 0,
) -> Backbone:
    """Build a frozen encoder of texts from a network of transformers.

    A causal language model is taken without its head, and an encoder-decoder without its decoder. An encoder is
    smaller than a causal model and usually better for classes. Code that a folder brings is never run.

    Args:
        name: owner/name of transformers' hub, the path of a folder of transformers or sentence-transformers, or the
            name of one below $LAMELLA_DATA.
        weights: "pretrained" (those of the name), "random", or the path of a safetensors file or of a folder.
        adapter: the folder of a LoRA that PEFT trained on this encoder; it is added to the weights.
        pool: how the vectors of a text's tokens become one: "mean", "first", "last" or "max". "auto" takes what a
            folder of sentence-transformers says; else "mean", and "last" where no token sees the later ones.
        max_length: the largest number of tokens of a text, whose end is cut off. By default 256, or less where the
            encoder's files say so.
        normalise: "unit" for vectors of length 1, or "none" to leave their length, unless the folder was exported from
            a model with vectors of length 1.
        storage: how the weights of linear layers are kept: "float32", "int8" for a quarter of the memory, or
            "nf4" for an eighth; in few bits nothing can be folded into them, and they cannot be trained.
        seed: of random weights.

    Raises:
        ValueError: an unknown option, or an encoder that cannot be had.
        FileNotFoundError: there is no such encoder.
        ModuleNotFoundError: transformers is not installed.
    """
    check_one_of("pool", pool, ("auto", *POOLS))
    check_one_of("normalise", normalise, ("none", "unit"))
    check_one_of("storage", storage, STORAGES)
    check_installed()
    files, place = _find(name, weights, None if pool == "auto" else pool)
    with torch.no_grad(), quiet(), drawn_by(seed, "backbone", name):
        network = build_network(name, files.config, None if place is None else read_weights(place))
        if adapter is not None:
            add_peft_lora(network, Path(adapter))
        store_in(storage, network)
        transform = _transform(name, files, network, max_length)
        encoder = _encoder(name, files, network, transform, files.unit or normalise == "unit")
        width = encoder(transform.example(1)).shape[1]
    marks = {
        "max_length": str(transform.max_length),
        "pool": encoder.pool,
        "tokenizer": tokenizer_digest(transform.tokenizer),
    }
    if files.unit:
        marks[UNIT] = "true"
    return Backbone(encoder, name=name, width=width, transform=transform, marks=marks)


def check_installed() -> None:
    """Raise ModuleNotFoundError where a package is missing that networks of texts need."""
    for package in ("tokenizers", "transformers"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(
                f"networks of texts need the package {package}; install it with: pip install 'lamella[text]'"
            )


def _find(name: str, weights: str, pool: str | None) -> tuple[EncoderFiles, Path | None]:
    """What describes the encoder, and where its weights are; None for random ones."""
    if (files := read_copy(Path(weights))) is not None:
        return files._replace(pool=pool or files.pool), files.weights
    files = read_encoder(encoder_folder(name, weights=weights == "pretrained"), pool=pool)
    return files, {"random": None, "pretrained": files.weights}.get(weights, Path(weights))


def _transform(name: str, files: EncoderFiles, network: "PreTrainedModel", max_length: int | None) -> TokenTransform:
    length, pad = length_and_padding(name, files, network, max_length)
    return TokenTransform(files.tokenizer, max_length=length, pad_id=pad)


def length_and_padding(
    name: str, files: EncoderFiles, network: "PreTrainedModel", max_length: int | None
) -> tuple[int, int]:
    """Return at how many tokens texts are cut, and the id that stands for padding.

    Args:
        name: of the network, for messages.
        files: what describes it.
        network: the network.
        max_length: the chosen number of tokens; None for 256, or less where the network's files say so.

    Raises:
        ValueError: the tokenizer has ids that the network does not know, or the network takes fewer tokens.
    """
    known, used = vocabulary_of(network) or 0, max(files.tokenizer.get_vocab().values(), default=-1)
    if used >= known:
        raise ValueError(
            f"the tokenizer of '{name}' has ids up to {used}, but its network only knows those below {known}; they do "
            "not belong together"
        )
    longest = longest_text(network)
    if max_length is not None and longest is not None and max_length > longest:
        raise ValueError(f"max_length = {max_length}, but '{name}' takes {longest} tokens at most; use 3 to {longest}")
    length = max_length or min(USUAL_LENGTH, longest or USUAL_LENGTH, *files.limits)
    own = getattr(network.config, "pad_token_id", None)
    pad = next((i for i in (files.pad_id, own) if isinstance(i, int) and 0 <= i < known), 0)
    return length, pad


@torch.no_grad()
def _encoder(
    name: str, files: EncoderFiles, network: "PreTrainedModel", transform: TokenTransform, unit: bool
) -> Encoder:
    try:
        pool = files.pool or ("mean" if sees_ahead(network) else "last")
        return Encoder(network, pool, unit=unit, has_class_token=has_class_token(network, transform))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"'{name}' ({network.config.model_type}) gives no vectors of tokens for a text ({first_line(error)}); "
            "choose another encoder"
        ) from error
