"""Backbones by name, of images and of texts: which function builds the one of a name, and what its options are."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lamella.backbones import bundled
from lamella.backbones.backbone import Backbone
from lamella.backbones.causal_models import OUTPUT, build_causal
from lamella.backbones.encoder_copies import is_kept_encoder
from lamella.backbones.encoder_places import folder_below_data, holds_encoder, is_called_as_encoder
from lamella.backbones.gguf_files import is_gguf
from lamella.backbones.hashed_words import HASHED_WORDS, build_hashed_words
from lamella.backbones.images import IMAGE_BACKBONES, build_image_backbone
from lamella.backbones.resnets import BLOCKS
from lamella.backbones.text_encoders import build_encoder
from lamella.common.options import Option, options_of

__all__ = ["BACKBONES", "backbone_options", "load_backbone", "noun_of"]

BACKBONES: dict[str, str] = IMAGE_BACKBONES | {
    HASHED_WORDS: "for texts: words, word pairs and groups of letters, counted; no weights, needs no download",
    "sentence-transformers/all-MiniLM-L6-v2": "for texts: an encoder of English sentences, small and quick (90 MB)",
    "BAAI/bge-base-en-v1.5": "for texts: an encoder of English sentences, larger (440 MB)",
    "intfloat/multilingual-e5-small": "for texts: an encoder of sentences in some hundred languages (470 MB)",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "for answers: a small language model of English (270 MB)",
}


class Kind(NamedTuple):
    """Backbones that are built by one function.

    Attributes:
        build: the function; its keyword arguments are the options of such a backbone.
        plural: what they are called in messages.
    """

    build: Callable[..., Backbone]
    plural: str


IMAGES = Kind(build_image_backbone, "backbones of images")
ENCODERS = Kind(build_encoder, "encoders of texts")
HASHED = Kind(build_hashed_words, "hashed words")
CAUSAL = Kind(build_causal, "language models")


def load_backbone(name: str, **options: Any) -> Backbone:
    """Build a frozen backbone.

    Args:
        name: of images: the bundled backbone, "resnet20", "resnet32", or any of timm's image models. Of texts:
            "hashed-words", or a transformers model: owner/name of its hub, the path of a folder, or the name of a
            folder below $LAMELLA_DATA. With `output="tokens"` it is a causal language model, which takes answers; its
            name may be the path of a GGUF file.
        options: those of the function that builds it: of images `build_image_backbone`, of texts `build_encoder`, of
            answers `build_causal`; there are none for "hashed-words".

    Raises:
        ValueError: an unknown name or option. FileNotFoundError: no such weights.
        ModuleNotFoundError: transformers is not installed.
    """
    backbone_options({"name": name, **options})
    return _kind_of({"name": name, **options}).build(name, **options)


def backbone_options(table: Mapping[str, Any]) -> dict[str, Option]:
    """The options of the backbone that a table names, by key; see `lamella.common.options`.

    Args:
        table: of a configuration, or arguments of `load_backbone` by name.

    Raises:
        ValueError: it has an option that only backbones of another kind have, or asks one of images for tokens.
    """
    name = table.get("name")
    kind = _kind_of(table) if isinstance(name, str) else IMAGES
    options = options_of(kind.build)
    for key in table.keys() - options.keys():
        if others := [other.plural for other in (IMAGES, ENCODERS, CAUSAL) if key in options_of(other.build)]:
            raise ValueError(
                f"'backbone.{key}' is an option of {' and of '.join(others)}, but '{name}' is one of the "
                f"{kind.plural}; take it away with backbone.{key}="
            )
    return {"name": Option(str)} | options


def _kind_of(table: Mapping[str, Any]) -> Kind:
    name, weights = table["name"], table.get("weights")
    if table.get("output") == OUTPUT:
        if _of_one_kind(name) is not None or (not is_called_as_encoder(name) and _is_of_timm(name)):
            raise ValueError(
                f"backbone.output={OUTPUT} asks for a language model, and '{name}' is none; name one, such as "
                "HuggingFaceTB/SmolLM2-135M-Instruct, or take it away with backbone.output="
            )
        return CAUSAL
    if (kind := _of_one_kind(name)) is not None:
        return kind
    if is_called_as_encoder(name) or (isinstance(weights, str) and is_kept_encoder(weights)):
        return ENCODERS
    folder = folder_below_data(name)
    return ENCODERS if folder is not None and holds_encoder(folder) and not _is_of_timm(name) else IMAGES


def _of_one_kind(name: str) -> Kind | None:
    """What the names are of that stand for one backbone of Lamella; None for others."""
    if name == HASHED_WORDS:
        return HASHED
    return IMAGES if name == bundled.NAME or name in BLOCKS else None


def _is_of_timm(name: str) -> bool:
    import timm

    return timm.is_model(name.split(".")[0])


def noun_of(name: str) -> str:
    """Return what a backbone of this name takes, "image", "text" or "answer"; a folder of transformers takes texts."""
    if is_gguf(name):
        return "answer"
    return "image" if _kind_of({"name": name}) is IMAGES else "text"
