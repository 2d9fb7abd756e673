"""Files of an encoder of texts: those of transformers, and beside them those of sentence-transformers."""

from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.backbones import Backbone
from lamella.backbones.encoder_network import quiet
from lamella.backbones.encoders import Encoder
from lamella.backbones.language_model import LanguageModel
from lamella.common.files import read_json, write_json
from lamella.data.answer_tokens import AnswerTokens
from lamella.data.tokens import IDS, MASK, TokenTransform

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "encoder_of",
    "loading",
    "own_tokenizer",
    "pad_token",
    "save_labels",
    "save_network",
    "save_pooling",
    "save_tokenizer",
]

_TEXTS = ("a", "Two words", "  [SEP] [CLS] </s> <|endoftext|> {}", "Grüße, 你好 😀\n\tend", "long " * 5000)
"""What the tokenizers are compared on."""
_OF_SENTENCE_TRANSFORMERS = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken", "max": "max_tokens"}


def encoder_of(backbone: Backbone) -> tuple[Encoder, TokenTransform]:
    """Return the encoder of a backbone of texts, and its transform.

    Raises:
        ValueError: it is no network of transformers.
    """
    if not isinstance(backbone.model, Encoder) or not isinstance(backbone.transform, TokenTransform):
        raise ValueError(
            f"the features of '{backbone.name}' are made by code of Lamella and not by a network, so there is nothing "
            "that others could load; --format adapters writes what was learned as plain tensors"
        )
    return backbone.model, backbone.transform


def save_network(encoder: Encoder | LanguageModel, folder: Path) -> None:
    """Write config.json and model.safetensors as transformers wants them.

    Args:
        encoder: an encoder or a language model without branches.
        folder: the folder, which may be there already.
    """
    state = {name: tensor.contiguous() for name, tensor in encoder.plain_state().items()}
    with quiet():
        encoder.network.save_pretrained(folder, state_dict=state)


def save_labels(folder: Path, described: dict[str, Any]) -> None:
    """Write the labels and the description of the export into the config.json of a network."""
    path, names = folder / "config.json", described["class_names"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    write_json(path, read_json(path) | labels | {"lamella": described})


def save_tokenizer(transform: TokenTransform, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, with which AutoTokenizer makes the same tokens.

    Raises:
        RuntimeError: it does not.
    """
    from transformers import AutoTokenizer

    pad = pad_token(transform)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": [IDS, MASK],
        "model_max_length": transform.max_length,
        "pad_token": pad,
        "padding_side": "right",
        "split_special_tokens": True,  # what looks like a special token within a text is plain text
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    own_tokenizer(transform).save(str(folder / "tokenizer.json"))
    with quiet():
        again = AutoTokenizer.from_pretrained(folder)
    texts = [*_TEXTS, f"{pad} a{pad} b"]
    rows = again(texts, padding=True, truncation=True)
    kept = zip(rows[IDS], rows[MASK], strict=True)
    theirs = [[i for i, counts in zip(ids, mask, strict=True) if counts] for ids, mask in kept]
    if theirs != [encoding.ids for encoding in transform.encode(texts)]:
        raise RuntimeError("the tokenizer of the export makes other tokens than the model's, so it was not kept")


def own_tokenizer(transform: TokenTransform | AnswerTokens) -> "Tokenizer":
    """Return a copy of a transform's tokenizer."""
    return deepcopy(transform.tokenizer)


def pad_token(transform: TokenTransform | AnswerTokens) -> str:
    """Return the token that others may pad with: a special one, so that texts do not have it.

    It may be another than the model pads with, since padding is never seen.
    """
    added = transform.tokenizer.get_added_tokens_decoder()
    special = {i: token.content for i, token in added.items() if token.special}
    first = next(iter(special.values()), None) or str(transform.tokenizer.id_to_token(0))
    return special.get(transform.pad_id, first)


def save_pooling(encoder: Encoder, transform: TokenTransform, width: int, folder: Path) -> None:
    """Write what sentence-transformers reads beside the files of transformers.

    Args:
        encoder: the encoder.
        transform: its transform.
        width: the number of features.
        folder: the folder with the files of transformers.
    """
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")] + [("Normalize", "2_Normalize")] * encoder.unit
    for _, name in modules:
        (folder / name).mkdir(exist_ok=True)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": transform.max_length, "do_lower_case": False})
    modes = {f"pooling_mode_{name}": encoder.pool == pool for pool, name in _OF_SENTENCE_TRANSFORMERS.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | modes)


def loading(encoder: Encoder, place: str) -> tuple[str, str]:
    """Return the class of transformers that loads the network, and the expression that does it.

    That is AutoModel, where this makes the same of its configuration.

    Args:
        encoder: the encoder.
        place: an expression for the place that it is loaded from.

    Raises:
        ValueError: there is no such class.
    """
    import transformers

    network = encoder.network
    kind, automatic = type(network), transformers.MODEL_MAPPING.get(type(network.config), None)
    name = "AutoModel" if automatic is kind else kind.__name__
    if not hasattr(transformers, name):
        raise ValueError(
            f"transformers has no class that loads {kind.__name__} alone, which is a part of a larger network; export "
            "the graph with --format onnx"
        )
    without = getattr(network, "pooler", network) is None and "add_pooling_layer" in signature(kind).parameters
    return name, f"{name}.from_pretrained({place}{', add_pooling_layer=False' if without else ''})"
