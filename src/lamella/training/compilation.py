"""Blocks of a network compiled while it is trained, once for all tasks.

What changes from task to task, the branches of adapted layers, stays outside the compiled code, and so does every batch
of another size: nothing is compiled anew, and what is computed does not depend on what came before. All blocks of one
shape share the code that the first of them was compiled to.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.branches import Adapted
from lamella.common.checks import first_line

__all__ = ["check_compilable", "compiled_blocks", "repeated_blocks"]

BACKEND = "inductor"
FORMS = 4  # of one block: with and without gradients, in either precision; torch would give up at 8 in all


@contextmanager
def compiled_blocks(network: nn.Module, batch_size: int) -> Generator[None]:
    """Within it the repeated blocks of `network` run compiled for batches of this size.

    Raises:
        ValueError: the network has no repeated blocks.
        RuntimeError: within it, at the first batch: they cannot be compiled, for want of a compiler say.
    """
    from torch._dynamo import config  # takes a second to import
    from torch._dynamo.exc import BackendCompilerFailed

    blocks: list[Any] = list(repeated_blocks(network))
    if not blocks:
        raise ValueError("fit.compile: the network has no sequence of equal blocks to compile; leave it out")
    layers: list[Any] = [layer for block in blocks for layer in block.modules() if isinstance(layer, Adapted)]
    # Methods, and no functions that know their module: of a network that is copied meanwhile, the copy gets its own.
    for layer in layers:
        layer.forward = MethodType(torch.compiler.disable(type(layer).forward), layer)
    for block in blocks:
        block.forward = MethodType(_for_batches_of(batch_size, type(block).forward), block)
    try:
        with config.patch(cache_size_limit=FORMS * len(blocks)):
            yield
    except BackendCompilerFailed as error:
        reason = first_line(error)
        raise RuntimeError(f"fit.compile: the blocks cannot be compiled here ({reason}); leave it out") from error
    finally:
        for module in (*blocks, *layers):
            del module.forward  # the class has it


def check_compilable(network: nn.Module, device: torch.device) -> None:
    """Refuse at once what would fail in the first step, by compiling a sum on this device.

    Raises:
        ValueError: the network has no repeated blocks. RuntimeError: nothing can be compiled here.
    """
    with compiled_blocks(network, 1):
        torch.compile(_plus_one, backend=BACKEND)(torch.zeros(2, device=device))


def _plus_one(x: Tensor) -> Tensor:
    return x + 1


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The members of every sequence of composite modules of one type that holds no such sequence itself.

    >>> [type(b).__name__ for b in repeated_blocks(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())))]
    ['Sequential', 'Sequential']
    """
    members = list(network.children())
    within = [block for member in members for block in repeated_blocks(member)]
    sequence = isinstance(network, nn.Sequential | nn.ModuleList) and len({type(m) for m in members}) == 1
    if within or not sequence:
        yield from within
    elif all(list(member.children()) for member in members):
        yield from members


def _for_batches_of(size: int, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(forward, dynamic=False, backend=BACKEND)

    def choose(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (compiled if len(x) == size else forward)(block, x, *args, **kwargs)

    return choose
