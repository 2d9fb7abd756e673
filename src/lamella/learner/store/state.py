"""The learned state of a method: all of its own tensors, and those of the backbone that it changed."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.common.files import tensors_to_bytes

__all__ = ["learned_state", "restore_state", "stored_bytes"]


def learned_state(method: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a method by name, without those of its backbone that are unchanged since loading."""
    state = dict(method.state_dict())
    for prefix, module in method.named_modules():
        if isinstance(module, Backbone):
            changed = module.changed()
            for key in [k for k in module.model.state_dict() if k not in changed]:
                state.pop(f"{prefix}.model.{key}", None)
    return state


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
            loaded = {f"{prefix}.model.{k}": v for k, v in module.model.state_dict().items() if ".branches." not in k}
            full = loaded | full
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
    foreign = tuple(f".branches.{name}." for name in without)
    state = learned_state(method)
    return len(tensors_to_bytes({k: v for k, v in state.items() if not any(mark in k for mark in foreign)}))
