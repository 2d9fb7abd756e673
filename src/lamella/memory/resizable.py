"""Modules whose tensors get longer from task to task, and that restore themselves from a file of any length."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Resizable"]


class Resizable(nn.Module):
    """Loads tensors of other sizes than it holds.

    Attributes:
        growing: names of its buffers and parameters that take the size, and the type, they have in the file; on loading
            they stay on the device on which they are. A grown parameter is frozen, as all are between two trainings.
        for_training: whether the module is of use to training alone, so that predictions do not need it.
    """

    resizable: ClassVar[tuple[str, ...]] = ()
    for_training: ClassVar[bool] = False

    def known(self, name: str) -> tuple[Any, ...]:
        """A growing buffer of whole numbers as Python has them, fetched from its device once: fetching waits for it."""
        fetched: dict[str, tuple[Tensor, int, tuple[Any, ...]]] = self.__dict__.setdefault("_fetched", {})
        tensor = getattr(self, name)
        changes = 0 if tensor.is_inference() else tensor._version  # a call that goes on is restored in place
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
