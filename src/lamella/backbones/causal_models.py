"""Language models of transformers as backbones: by name, by folder, from a GGUF file, or from a copy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lamella.adapters.few_bits import STORAGES, store_in
from lamella.backbones.backbone import Backbone
from lamella.backbones.causal_files import START, CausalFiles, chat_of_pairs, read_causal
from lamella.backbones.drawing import drawn_by
from lamella.backbones.encoder_copies import read_causal_copy
from lamella.backbones.encoder_decoder import EncoderDecoder
from lamella.backbones.encoder_files import read_weights
from lamella.backbones.encoder_network import build_network, quiet, sees_ahead
from lamella.backbones.encoder_places import encoder_folder
from lamella.backbones.encoder_tokenizer import tokenizer_digest
from lamella.backbones.gguf_files import is_gguf, read_gguf
from lamella.backbones.language_model import LanguageModel, gives_targets_alone
from lamella.backbones.peft_lora import add_peft_lora
from lamella.backbones.text_encoders import check_installed, length_and_padding
from lamella.common.checks import check_one_of, first_line
from lamella.common.randomness import generator
from lamella.data.answer_pairs import AnswerPairs
from lamella.data.answer_tokens import AnswerTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["OUTPUT", "build_causal"]

OUTPUT = "tokens"
"""The value of the option `output` that asks for a language model and not for features."""


def build_causal(
    name: str,
    *,
    output: str = OUTPUT,
    weights: str = "pretrained",
    adapter: str | None = None,
    max_length: int | None = None,
    storage: str = "float32",
    seed: int = 0,
) -> Backbone:
    """Build a frozen language model from a network of transformers. It takes answers.

    That is a causal one, such as GPT-2 or Llama, or an encoder-decoder, such as T5, whose encoder reads the prompt and
    whose decoder writes the answer. Code that a folder brings is never run.

    Args:
        name: owner/name of transformers' hub, the path of a folder of transformers or of a GGUF file, or the name of a
            folder below $LAMELLA_DATA. The weights of a GGUF file are made float32, which takes four to eight times the
            room and makes them no better.
        output: "tokens", what a language model gives; it tells that one is meant, and not an encoder of texts.
        weights: "pretrained" (those of the name), "random", or the path of a safetensors file or of a folder.
        adapter: the folder of a LoRA that PEFT trained on this model; it is added to the weights.
        max_length: the largest number of tokens of an answer and what it answers, of an encoder-decoder of each of
            them; of longer ones the beginning of the prompt is cut. By default 256, or less where the model's files say
            so.
        storage: how the weights of linear layers are kept: "float32", "int8" for a quarter of the memory, or "nf4" for
            an eighth; in few bits nothing can be folded into them. A last layer that is the embedding stays float32.
        seed: of random weights.

    Raises:
        ValueError: an unknown option, or a model that cannot be had.
        FileNotFoundError: there is no such model.
        ModuleNotFoundError: transformers or gguf is not installed.
    """
    check_one_of("output", output, (OUTPUT,))
    check_one_of("storage", storage, STORAGES)
    check_installed()
    with torch.no_grad(), quiet(), drawn_by(seed, "backbone", name):
        described, state = _read(name, weights)
        network = build_network(name, described.files.config, state, causal=True)
        pairs = bool(network.config.is_encoder_decoder)
        base: Any = network.base_model
        if not pairs and sees_ahead(base):
            raise ValueError(
                f"'{name}' ({network.config.model_type}) is no causal language model: its tokens see those behind them"
            )
        if adapter is not None:
            add_peft_lora(network, Path(adapter))
        store_in(storage, network)
        length, pad = length_and_padding(name, described.files, network, max_length)
        model, transform = (_pairs if pairs else _tokens)(name, network, described, max_length=length, pad_id=pad)
        _check(name, model, transform)
        width = model(transform.example(1)).shape[1]
    marks = {
        "max_length": str(length),
        "chat_template": transform.chat.template,
        "tokenizer": tokenizer_digest(transform.tokenizer),
    }
    return Backbone(model, name=name, width=width, transform=transform, marks=marks)


def _read(name: str, weights: str) -> tuple[CausalFiles, dict[str, torch.Tensor] | None]:
    """What describes the model, and its tensors; None for random ones."""
    if (described := read_causal_copy(Path(weights))) is not None:
        return described, read_weights(described.files.weights)
    if is_gguf(name):
        described, state = read_gguf(Path(name).expanduser(), weights=weights == "pretrained")
    else:
        described, state = read_causal(encoder_folder(name, weights=weights == "pretrained")), None
    if weights == "pretrained":
        return described, read_weights(described.files.weights) if state is None else state
    return described, None if weights == "random" else read_weights(Path(weights))


def _tokens(
    name: str, network: "PreTrainedModel", described: CausalFiles, **options: int
) -> tuple[LanguageModel, AnswerTokens]:
    """A causal model, and what makes its inputs."""
    return LanguageModel(network, described.ends), AnswerTokens(described.files.tokenizer, described.chat, **options)


def _pairs(
    name: str, network: "PreTrainedModel", described: CausalFiles, **options: int
) -> tuple[LanguageModel, AnswerTokens]:
    """An encoder-decoder, and what makes its inputs."""
    known = [getattr(network.config, key, None) for key in (START, "bos_token_id")]  # as transformers looks for it
    start = next((i for i in known if isinstance(i, int)), None)
    if start is None:
        raise ValueError(f"the files of '{name}' do not say what its decoder starts from; add {START} to config.json")
    chat = chat_of_pairs(described)
    transform = AnswerPairs(described.files.tokenizer, chat, start=start, **options)
    return EncoderDecoder(network, described.ends, start=start), transform


def _check(name: str, model: LanguageModel, transform: AnswerTokens) -> None:
    """Raise ValueError where a network makes its logits in a way in which those of single tokens cannot be had."""
    batch = transform.example(2, generator(0, "backbone", "probe"))
    reason = "it makes them of all tokens at once"
    try:
        if gives_targets_alone(model, batch):
            return
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        reason = first_line(error)
    raise ValueError(
        f"'{name}' ({model.network.config.model_type}) gives no logits of single tokens ({reason}); choose another"
    )
