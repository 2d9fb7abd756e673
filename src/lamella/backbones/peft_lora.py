"""A LoRA that PEFT trained, or a DoRA or VeRA, added to the weights of a backbone as it is loaded.

A layer may be called as it is here, or as the ViTs of Transformers call it; query, key and value of their own go to
their rows of a fused layer. Networks of texts are those of Transformers themselves, with or without a head in front.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lamella.backbones.peft_scale import PATTERNS, scale_of
from lamella.backbones.peft_variants import HARMLESS, TAKEN, vera_as_lora, with_lengths
from lamella.backbones.plain_layers import is_transposed
from lamella.backbones.roles import find_places, roles_of_name, rows_of
from lamella.backbones.weight_files import CLASSIFIERS, read_state, weights_file
from lamella.common.files import read_json

__all__ = ["CONFIG", "add_peft_lora", "is_classifier", "read_peft"]

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_HEADS = (*CLASSIFIERS, "score.", "pre_classifier.", "lm_head.", "cls.", "pooler.")
"""How the keys begin of what stands behind the features, in networks of timm and of transformers."""
_OF_TRANSFORMERS = (  # names of its ViTs, and timm's
    (r"^(vit|deit|model)\.", ""),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"attention\.attention\.(query|key|value)$", r"attn.\1"),
    (r"attention\.output\.dense$", "attn.proj"),
    (r"intermediate\.dense$", "mlp.fc1"),
    (r"output\.dense$", "mlp.fc2"),
)


@torch.no_grad()
def add_peft_lora(model: nn.Module, folder: Path) -> None:
    """Add every update of the adapter in `folder` to the weight it belongs to, and take over what it holds besides.

    The classifier that was trained with it is left out, as that of a checkpoint is.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is another kind of adapter, or does not fit the model.
    """
    config, pairs, others = read_peft(folder)
    if config.get("fan_in_fan_out") and not any(map(is_transposed, model.modules())):
        _refuse(folder, "a variant of it")
    for layer, pair in pairs.items():
        if not is_classifier(layer):
            _add_pair(model, layer, pair, config, folder)
    _take_over(model, {_without_prefix(model, name): tensor for name, tensor in others.items()}, folder)


def read_peft(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Read an adapter of PEFT.

    Args:
        folder: its folder.

    Returns:
        Its configuration; by layer the factors "A" and "B", float64 and without `scale_of`, and the "magnitude_vector"
        of a DoRA; and all other tensors. The A of a VeRA has the columns of its widest layer.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: it is another kind of adapter, or cannot be read.
    """
    config, state = _read_config(folder), read_state(weights_file(folder, _FILES))
    if config.get("peft_type") == "VERA":
        state = vera_as_lora(state, folder)
    pairs: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        layer, _, letter = name.removesuffix(".weight").rpartition(".lora_")
        if layer and letter in ("A", "B", "magnitude_vector"):
            pairs.setdefault(layer, {})[letter] = tensor.double()
        else:
            others[name] = tensor
    if not pairs:
        raise ValueError(f"'{folder}' holds no LoRA: none of its tensors is called ...lora_A.weight")
    return config, pairs, others


def is_classifier(name: str) -> bool:
    """Return whether a tensor or a layer of this name stands behind the features."""
    return f"{name}.".startswith(_HEADS)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"'{folder}' holds no adapter of PEFT: it has no {CONFIG}")
    config = read_json(path)
    tables = [config.get(key) or {} for key in PATTERNS] if isinstance(config, dict) else [None]
    if not isinstance(config, dict) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"'{path}' is no configuration that PEFT wrote; save the adapter with PEFT again")
    kind = config.get("peft_type")
    if kind is None:
        raise ValueError(
            f"'{path}' has no 'peft_type', so it does not say what is in the folder; save it with PEFT again"
        )
    if kind not in ("LORA", "VERA"):
        _refuse(folder, str(kind))
    start = config.get("init_lora_weights", True)
    if kind == "LORA" and isinstance(start, str) and start not in (*HARMLESS, *TAKEN):
        _refuse(folder, f"a variant of it that began with init_lora_weights '{start[:40]}'")
    return config


def _refuse(folder: Path, kind: str) -> None:
    raise ValueError(
        f"'{folder}' is no plain LoRA but {kind}; merge it with PEFT (merge_and_unload), save the weights, and start "
        "from those"
    )


def _add_pair(
    model: nn.Module, layer: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> None:
    if not {"A", "B"} <= pair.keys():
        raise ValueError(f"'{folder}' has lora_{next(iter(pair))} of '{layer}' without the other of the two")
    A, B = pair["A"], pair["B"]
    weight = _weight_of(model, layer, folder)
    A = A[:, : weight[0].numel()] if config.get("peft_type") == "VERA" else A
    fits = len(A) == B.shape[1] and A[0].numel() == weight[0].numel() and len(B) == len(weight)
    if not fits:
        raise ValueError(
            f"'{folder}' does not fit this backbone: the LoRA of '{layer}' has A {tuple(A.shape)} and B "
            f"{tuple(B.shape)}, the weight is {tuple(weight.shape)}"
        )
    scale = scale_of(config, layer, len(A), folder)
    update = scale * (B.flatten(1) @ A.flatten(1))
    if not update.isfinite().all():
        raise ValueError(f"'{folder}' has numbers in the LoRA of '{layer}' that are not finite; train it again")
    whole = weight.double().flatten(1) + update
    if take := TAKEN.get(config.get("init_lora_weights", True)):
        whole = whole - take(weight.flatten(1), len(A), scale)
    if config.get("use_dora"):
        whole = with_lengths(whole, pair.get("magnitude_vector"), layer, folder)
    weight.copy_(whole.reshape(weight.shape))


def _weight_of(model: nn.Module, layer: str, folder: Path) -> Tensor:
    """The weight that a name in an adapter means, or its rows of a fused one: a view.

    Raises:
        ValueError: the model has no such layer.
    """
    modules = dict(model.named_modules())
    timm = layer
    for theirs, ours in _OF_TRANSFORMERS:
        timm = re.sub(theirs, ours, timm)
    for name in (layer, _without_prefix(model, layer), timm):
        if isinstance(found := modules.get(name), nn.Linear | nn.Conv2d):
            return found.weight
        if found is not None and is_transposed(found):
            return cast(Tensor, found.weight).T  # a view, so what is written to it goes to the layer
    parent = timm.rpartition(".")[0]
    role = roles_of_name(timm)
    for place in find_places(model):
        if len(role) == 1 and role[0] in place.roles and place.name.rpartition(".")[0] == parent:
            return cast(Tensor, modules[place.name].weight)[rows_of(place, role) or slice(None)]
    raise ValueError(f"'{folder}' does not fit this backbone: it has no layer '{layer}' to add the LoRA to")


def _without_prefix(model: nn.Module, name: str) -> str:
    """A name as it is within the network that transformers puts a head on; the name itself for other networks."""
    prefix = getattr(model, "base_model_prefix", "")
    return name.removeprefix(f"{prefix}.") if prefix else name


def _take_over(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Put whole tensors, such as trained biases, in the place of the model's."""
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name in own and own[name].shape == tensor.shape:
            own[name].copy_(tensor)
        elif not is_classifier(name):
            raise ValueError(f"'{folder}' does not fit this backbone: it has no '{name}' of {tuple(tensor.shape)}")
