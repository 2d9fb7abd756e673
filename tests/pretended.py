"""An accelerator that is pretended and really computes: its tensors lie on the CPU and refuse what a GPU would.

Their device is called "meta", which autograd works through in the calling thread. An operation runs on the CPU if all
of its tensors are pretended, and raises if some are not: whatever forgot to move a tensor, makes one in the wrong
place, or asks for NumPy's view of one, fails here as it would on a GPU. So does drawing random numbers there, which a
GPU would allow: Lamella draws on the CPU.

It is not a GPU: it has float32 alone and no autocast, no pinned memory, no streams, and waits for everything;
`test_waiting.py` looks for that.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("meta", 1)
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
WITH_A_NUMBER = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, *INDEXING}


class Pretended(Tensor):
    """A tensor on the pretended device; `inside` has its numbers."""

    inside: Tensor
    is_meta = False  # or loading a state dict would warn that nothing is loaded
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: Any, inside: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(
            cls, inside.size(), strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype,
            layout=inside.layout, device=DEVICE,
        )  # type: ignore[attr-defined]  # fmt: skip
        made.inside = inside
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inside"], None  # so that modules exchange a parameter's content, and it stays the same object

    @staticmethod
    def __tensor_unflatten__(inside: dict[str, Tensor], *_: Any) -> "Pretended":
        return Pretended(inside["inside"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.inside.data_ptr()

    def tolist(self) -> Any:
        return self.inside.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or DEVICE)

    def __getitem__(self, at: Any) -> Any:
        return super().__getitem__(indices(at))

    def __setitem__(self, at: Any, value: Any) -> None:
        super().__setitem__(indices(at), value)

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.inside!r})"


def indices(at: Any) -> Any:
    """With tensors for lists, of which torch would make empty ones."""
    at = at if isinstance(at, tuple) else (at,)
    return tuple(torch.tensor(i) if isinstance(i, list) else i for i in at)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation of torch where a GPU would do it.

    Raises:
        RuntimeError: where a GPU would raise, or random numbers are drawn there.
    """
    tensors: list[Tensor] = []

    def inside(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor.inside if isinstance(tensor, Pretended) else tensor

    here = each_tensor(args, inside)
    named = {name: each_tensor(value, inside) for name, value in kwargs.items()}
    wanted = kwargs.get("device")
    if wanted is not None:
        there, named["device"] = wanted == DEVICE, torch.device("cpu") if wanted == DEVICE else wanted
    else:
        there = any(isinstance(t, Pretended) for t in tensors)
    if func is aten.copy_.default:  # between devices, too
        func(*here, **named)
        return args[0]
    if there and wanted is None:
        check_places(func, args, tensors)
    if there and torch.Tag.nondeterministic_seeded in func.tags:
        raise RuntimeError(f"{func} draws random numbers on the accelerator")
    found = func(*here, **named)
    return return_and_correct_aliasing(func, args, kwargs, each_tensor(found, Pretended)) if there else found


def each_tensor(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The value with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(each_tensor(v, change) for v in value) if isinstance(value, list | tuple) else value


def check_places(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors on two devices, as a GPU does: it takes numbers and indices from the CPU, and writes none there.

    Raises:
        RuntimeError: there are some.
    """
    foreign = [t for t in tensors if not isinstance(t, Pretended)]
    if foreign and func in INDEXING:
        foreign = [t for t in foreign if not any(t is index for index in args[1])]
    if foreign and (torch.Tag.pointwise in func.tags or func in WITH_A_NUMBER):
        foreign = [t for t in foreign if t.ndim or (t is args[0] and func._schema.is_mutable)]
    if foreign:
        raise RuntimeError(f"{func}: tensors on two devices, of shapes {[tuple(t.shape) for t in foreign]} on the CPU")


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def from_numbers(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` or `torch.as_tensor`, which take "meta" for what it is and leave the new tensor empty."""

    def made(data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        tensor = make(data, dtype=dtype)
        return tensor if device is None else tensor.to(device)

    return made


@contextmanager
def pretending() -> Iterator[None]:
    """In this thread, and those that it starts, `DEVICE` is an accelerator."""
    plain = threading.Thread

    class Thread(plain):
        def run(self) -> None:
            with Operations():
                super().run()

    with pytest.MonkeyPatch.context() as patch, Operations():
        patch.setattr(threading, "Thread", Thread)
        patch.setattr(torch, "tensor", from_numbers(torch.tensor))
        patch.setattr(torch, "as_tensor", from_numbers(torch.as_tensor))
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        patch.setattr(torch, "is_autocast_enabled", lambda _: False)
        patch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
        for module in ("training.passes", "learner.config.precision"):
            patch.setattr(f"lamella.{module}.resolve_device", lambda _: DEVICE)
        # Where plain tensors are told from quantised ones.
        for module in ("adapters.adapter", "backbones.feature_cache"):
            patch.setattr(f"lamella.{module}.Tensor", Pretended)
        yield
