"""The learned state of a method: all of its own tensors, and those of the backbone that it changed."""

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

from torch import Tensor, nn

from lamella.adapters.branches import adapter_names
from lamella.backbones import Backbone
from lamella.common.checksums import checksums
from lamella.common.files import json_to_bytes, tensors_to_bytes

__all__ = ["learned_state", "restore_state", "state_digest", "stored_bytes", "taken"]


def learned_state(method: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a method by name, without those of its backbone that are unchanged since loading."""
    state = dict(method.state_dict())
    for prefix, module in method.named_modules():
        if isinstance(module, Backbone):
            learned = module.learned()
            for key in [k for k in module.model.state_dict() if k not in learned]:
                state.pop(f"{prefix}.model.{key}", None)
            state |= {f"{prefix}.model.{key}": tensor for key, tensor in learned.items()}
    return state


def state_digest(method: nn.Module) -> str:
    """Return a digest of the learned state of a method, which is another one where a bit of it differs."""
    state = learned_state(method)
    told = [[name, list(state[name].shape), str(state[name].dtype)] for name in state]
    return sha256(json_to_bytes([told, checksums(list(state.values()))])).hexdigest()


def restore_state(method: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of `learned_state` into a new method. The other tensors of the backbone stay as loaded.

    Args:
        method: a method that was built from the same configuration.
        state: the tensors by name.

    Raises:
        ValueError: the state belongs to another method or backbone.
    """
    full = dict(state)
    for prefix, module in method.named_modules():
        if isinstance(module, Backbone):
            own = f"{prefix}.model."
            stored = {k.removeprefix(own): full.pop(k) for k in list(full) if k.startswith(own)}
            full |= {own + k: v for k, v in module.load_learned(stored).items()}
    try:
        method.load_state_dict(full)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise ValueError(f"the stored state does not fit this method ({lines[-1].strip()})") from error


def stored_bytes(method: nn.Module, without: Collection[str] = ()) -> int:
    """Return the size of the file that `save_model` would write for a method, in bytes.

    Args:
        method: the method to measure.
        without: the names of adapters that are not counted.
    """
    adapter_of = adapter_names(method)
    return len(tensors_to_bytes({k: v for k, v in learned_state(method).items() if adapter_of(k) not in without}))


def taken(state: dict[str, Tensor], prefix: str, names: Sequence[str]) -> list[Tensor]:
    """Take some tensors with a row for each sample out of a stored state.

    Args:
        state: the tensors by name; all whose name begins with the prefix are removed from it.
        prefix: the first part of their names.
        names: the rest of their names.

    Returns:
        The tensors in the order of `names`; none if the state has none of them.

    Raises:
        ValueError: one of several is missing, or they have different numbers of rows.
    """
    own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    if not own:
        return []
    what = prefix.rstrip("/").replace("_", "-")
    if missing := [name for name in names if prefix + name not in own]:
        raise ValueError(f"the stored state lacks '{missing[0]}' of '{what}'; restore the file from a copy")
    tensors = [own[prefix + name] for name in names]
    if len({tensor.shape[:1] for tensor in tensors}) != 1 or not tensors[0].ndim:
        raise ValueError(f"the tensors of '{what}' have sizes that do not fit; restore the file from a copy")
    return tensors
