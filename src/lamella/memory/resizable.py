"""Modules whose tensors grow from task to task, and that load tensors of any size."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Resizable"]


class Resizable(nn.Module):
    """A module that can load tensors of other sizes than its own.

    Attributes:
        resizable: the names of the buffers and parameters that take the size and the type of the loaded tensor. They
            stay on their device, and a loaded parameter is frozen, as all parameters are outside of training.
        for_training: whether only training needs the module, so that predictions work without it.
    """

    resizable: ClassVar[tuple[str, ...]] = ()
    for_training: ClassVar[bool] = False

    def known(self, name: str) -> tuple[Any, ...]:
        """Return a growing buffer of whole numbers as Python numbers, cached, since reading waits for the device."""
        fetched: dict[str, tuple[Tensor, int, tuple[Any, ...]]] = self.__dict__.setdefault("_fetched", {})
        tensor = getattr(self, name)
        changes = 0 if tensor.is_inference() else tensor._version  # a resumed call restores it in place
        if name not in fetched or fetched[name][0] is not tensor or fetched[name][1] != changes:
            fetched[name] = tensor, changes, tuple(tensor.tolist())
        return fetched[name][2]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.resizable:
            if (held := state_dict.get(prefix + name)) is not None:
                own = getattr(self, name)
                empty = torch.empty_like(held, device=own.device)
                setattr(self, name, nn.Parameter(empty, requires_grad=False) if name in self._parameters else empty)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
