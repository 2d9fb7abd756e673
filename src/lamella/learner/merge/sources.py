"""What can be merged: models of Lamella, and folders in which PEFT saved a LoRA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamella.adapters.pairs import Pair
from lamella.backbones import Backbone
from lamella.backbones.encoder_places import is_path
from lamella.backbones.peft_lora import CONFIG, is_classifier, read_peft
from lamella.backbones.peft_scale import scale_of
from lamella.backbones.peft_variants import TAKEN
from lamella.learner.export.low_rank import pairs_of
from lamella.learner.export.network import fixed
from lamella.learner.export.peft_folder import differences
from lamella.learner.model import load
from lamella.learner.store.versions import holds_model

__all__ = ["Source", "read_source"]

_OF_TEXTS = "network."
"""What the names of the layers of an encoder or a language model begin with in a backbone, and not in transformers."""


class Source(NamedTuple):
    """An adapter, and what it belongs to.

    Attributes:
        place: its folder.
        pairs: the change of each layer, with its scale.
        base: the name of the network in transformers' hub; None where it has none.
        digest: the SHA-256 of the network's weights; None where it is not known.
        turned: whether PEFT has to transpose the changes (`fan_in_fan_out`, for GPT-2).
        left_out: what of it is not merged, for a line to the user; "" for nothing.
        backbone: the network before anything was learned; None where it is not known.
    """

    place: Path
    pairs: dict[str, Pair]
    base: str | None
    digest: str | None
    turned: bool
    left_out: str
    backbone: Backbone | None = None


def read_source(place: Path, *, trusted: bool = True) -> Source:
    """Read an adapter.

    Args:
        place: the folder of a model, or one in which PEFT saved an adapter.
        trusted: False for a stranger's model; see `Learner.load`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds neither, or something that cannot be merged.
    """
    if (place / CONFIG).is_file():
        return _of_peft(place)
    if holds_model(place):
        return _of_model(place, trusted)
    if not place.exists():
        raise FileNotFoundError(f"there is no '{place}'; give folders of models, or of adapters that PEFT saved")
    raise ValueError(f"'{place}' holds neither a model of Lamella nor an adapter of PEFT (no {CONFIG} in it)")


def _of_model(place: Path, trusted: bool) -> Source:
    model = load(place, device="cpu", trusted=trusted)
    if not model.tasks:
        raise ValueError(f"'{place}' has learned nothing yet; give it a task first")
    method, noun = model.method.eval(), model.backbone.transform.noun
    if method.routed:
        raise ValueError(
            f"'{place}' chooses adapters for each sample, so no one update of it can be merged; write a folder for "
            "each task (lamella export --format peft --per-task), and merge these"
        )
    backbone = model.new_backbone()
    changes = differences(method, fixed(method), backbone.model)
    pairs = pairs_of(changes, len(model.tasks), f"leave '{place}' out, since only LoRAs are merged")
    name = model.backbone.name
    of_texts = noun != "image"
    hub = name if of_texts and "/" in name and not is_path(name) else None
    own = {layer.removeprefix(_OF_TEXTS): pair for layer, pair in pairs.items()} if of_texts else pairs
    transposed = getattr(model.backbone.model, "transposed", ())
    turned = any(layer in own for layer in transposed)
    left_out = "" if noun == "answer" else "its classes and its classifier"
    return Source(place, own, hub, model.backbone.weights_sha256, turned, left_out, backbone)


def _of_peft(place: Path) -> Source:
    config, found, others = read_peft(place)
    if kind := _no_product(config):
        raise ValueError(
            f"'{place}' is {kind}, whose change is no scaled product B A, so no rule merges it; train a plain LoRA"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"'{place}' has trained biases (bias = {config['bias']!r}), which no rule merges; train it with bias='none'"
        )
    if strange := [name for name in others if not is_classifier(name)]:
        raise ValueError(
            f"'{place}' has trained '{strange[0]}' beside its LoRA, which no rule merges; train the LoRA alone"
        )
    pairs: dict[str, Pair] = {}
    for layer, factors in found.items():
        if not is_classifier(layer):
            pairs[layer] = _pair(place, layer, factors, config)
    if not pairs:
        raise ValueError(f"'{place}' changes the classifier alone, so there is nothing to merge")
    beside = len(others) + sum(is_classifier(layer) for layer in found)
    digest = _metadata(place).get("weights_sha256")
    turned, base = bool(config.get("fan_in_fan_out")), config.get("base_model_name_or_path")
    return Source(place, pairs, base or None, digest, turned, "its classifier" if beside else "")


def _no_product(config: Mapping[str, Any]) -> str:
    """Return what an adapter is, if its change of a weight is not B A times a scale; else ""."""
    if config.get("peft_type") != "LORA":
        return f"a {str(config.get('peft_type'))[:20]}"
    start = config.get("init_lora_weights", True)
    if start in TAKEN:
        return f"a LoRA that began with '{start}'"
    return "a DoRA" if config.get("use_dora") else ""


def _pair(place: Path, layer: str, factors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Pair:
    if len(factors) < 2:
        raise ValueError(f"'{place}' has lora_{next(iter(factors))} of '{layer}' without the other of the two")
    A, B = factors["A"], factors["B"]
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
        raise ValueError(
            f"'{place}' has A {tuple(A.shape)} and B {tuple(B.shape)} on '{layer}'; only linear layers are merged, "
            "where they are (rank, inputs) and (outputs, rank)"
        )
    if not (A.isfinite().all() and B.isfinite().all()):
        raise ValueError(f"'{place}' has numbers in the LoRA of '{layer}' that are not finite; train it again")
    single = A.float()  # as it was stored, so that rules know from which size on a singular value is only rounding
    return Pair(single if torch.equal(single.double(), A) else A, scale_of(config, layer, len(A), place) * B)


def _metadata(place: Path) -> Mapping[str, str]:
    """Return the notes in the file of an adapter; those that Lamella exports name the weights that they belong to."""
    from safetensors import safe_open

    file = place / "adapter_model.safetensors"
    if not file.is_file():
        return {}
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}
