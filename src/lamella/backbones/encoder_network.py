"""Builds a network of transformers from a configuration and tensors, both read before; it fetches and runs nothing."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lamella.common.checks import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["build_network", "longest_text", "quiet", "sees_ahead", "vocabulary_of"]

_QUIET = Lock()  # what transformers prints is set for the whole process
LEFT_OUT = ("attn_implementation", "experts_implementation", "fusion_config", "reference_compile", "use_kernels")
"""Settings of how a network is computed. Some of their values would fetch code."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep bars, reports and warnings of transformers from the terminal while this runs."""
    from transformers.utils import logging as messages

    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
        messages.set_verbosity(logging.CRITICAL)
        messages.disable_progress_bar()
        try:
            yield
        finally:
            messages.set_verbosity(level)
            if bars:
                messages.enable_progress_bar()


def build_network(
    name: str, config: Mapping[str, Any], state: Mapping[str, Tensor] | None, *, causal: bool = False
) -> "PreTrainedModel":
    """Build a network in float32, without a head or as a language model.

    Args:
        name: of the network, for messages.
        config: the content of its config.json.
        state: its tensors by name, those of a head among them; None for random ones.
        causal: whether the network gives the logits of the next token, and not vectors of tokens: a causal language
            model, or of an encoder-decoder the whole.

    Raises:
        ValueError: transformers does not know the architecture, it takes no texts, or the tensors do not fit.
    """
    kind, settings = _architecture(name, config, causal)
    pools = "add_pooling_layer" in inspect.signature(kind).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if pools else {}
    try:
        if state is None:
            network, found = kind(settings, **options).float(), None
        else:
            loaded: Any = kind.from_pretrained(
                None,
                config=settings,
                state_dict=dict(state),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
            network, found = loaded
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"'{name}' cannot be built as its config.json says ({first_line(error)})") from error
    if found is not None:
        _check_loaded(name, network, found, causal)
    if not causal and settings.is_encoder_decoder and hasattr(network, "decoder"):
        network = network.get_encoder()
    if vocabulary_of(network) is None:
        raise ValueError(
            f"'{name}' ({config.get('model_type')}) takes no token ids, so it is no encoder of texts; backbones of "
            "images are called by their name in timm"
        )
    return network.eval()


def _architecture(
    name: str, config: Mapping[str, Any], causal: bool
) -> "tuple[type[PreTrainedModel], PreTrainedConfig]":
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        MODEL_FOR_TEXT_ENCODING_MAPPING,
        MODEL_MAPPING,
    )

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"'{name}' is of '{model_type}', which transformers {transformers.__version__} does not have")
    if "quantization_config" in config:
        raise ValueError(f"the weights of '{name}' are quantised, which cannot be had; use those before that")
    try:
        settings: Any = CONFIG_MAPPING[model_type].from_dict(_plain(config))
    except Exception as error:  # its own checks raise errors of their own kinds
        raise ValueError(f"the config.json of '{name}' is refused by transformers ({first_line(error)})") from error
    writing = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if settings.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    for kinds in (writing,) if causal else (MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING):
        if type(settings) in kinds:
            kind: Any = kinds[type(settings)]
            return (kind[0] if isinstance(kind, tuple) else kind), settings
    if causal:
        raise ValueError(f"'{name}' ({model_type}) is no language model, so it writes no answers; use one that does")
    raise ValueError(f"'{name}' ({model_type}) has no network that gives vectors of tokens; choose another encoder")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, and those within it, without the settings that are left out."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if not key.lstrip("_").startswith(LEFT_OUT)
    }


def _check_loaded(name: str, network: nn.Module, found: Mapping[str, Any], causal: bool) -> None:
    if wrong := sorted(found["mismatched_keys"]):
        raise ValueError(f"the weights of '{name}' do not fit its config.json: another shape of '{wrong[0][0]}'")
    missing = sorted(found["missing_keys"])
    if missing and causal:
        raise ValueError(f"'{name}' is no language model, or its weights are not whole: they lack '{missing[0]}'")
    if missing:
        raise ValueError(f"the weights of '{name}' do not fit its config.json: they lack '{missing[0]}'")
    if broken := [key for key, value in network.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(f"the weights of '{name}' have numbers in '{broken[0]}' that are not finite; get them again")


def vocabulary_of(network: "PreTrainedModel") -> int | None:
    """How many token ids a network knows; None where it takes none."""
    try:
        embedding = network.get_input_embeddings()
    except NotImplementedError:
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def longest_text(network: "PreTrainedModel") -> int | None:
    """How many tokens a network takes at most; None where positions are relative, and no number is the largest."""
    limits: list[int] = []
    if isinstance(most := getattr(network.config, "max_position_embeddings", None), int) and most > 0:
        limits.append(most)
    for name, layer in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            limits.append(layer.num_embeddings - layer.padding_idx - 1)  # RoBERTa counts on from the padding's id
    return min(limits, default=None)


@torch.no_grad()
def sees_ahead(network: "PreTrainedModel") -> bool:
    """Whether the vector of a token depends on those behind it. It does not in causal networks."""
    ids = torch.tensor([[3, 4, 5], [3, 4, 6]]) % (vocabulary_of(network) or 1)
    vectors: Tensor = network(ids, attention_mask=torch.ones_like(ids), return_dict=True).last_hidden_state[:, 0]
    return not torch.equal(vectors[0], vectors[1])
