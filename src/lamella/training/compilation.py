"""Compiles the blocks of a network for training, once for all tasks.

The branches of adapted layers change from task to task, so they run outside of the compiled code, as do batches of
other sizes and passes whose attentions see prefixes. So nothing is compiled a second time, and results do not depend on
earlier tasks. All blocks of one shape share the compiled code.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.branches import Adapted
from lamella.adapters.prefix import prefixes_act
from lamella.common.checks import first_line

__all__ = ["check_compilable", "compiled_blocks", "repeated_blocks"]

BACKEND = "inductor"
FORMS = 4  # versions of a block: with and without gradients, in both precisions; the default limit for all blocks is 8


@contextmanager
def compiled_blocks(network: nn.Module, batch_size: int) -> Generator[None]:
    """Run the repeated blocks of a network compiled, within the context.

    Args:
        network: the network; its blocks are as before after the context.
        batch_size: the size of the batches that are compiled for; other batches run uncompiled.

    Raises:
        ValueError: the network has no repeated blocks.
        RuntimeError: the blocks cannot be compiled, for example because there is no compiler. This is raised at the
            first batch.
    """
    from torch._dynamo import config  # takes a second to import
    from torch._dynamo.exc import BackendCompilerFailed

    blocks: list[Any] = list(repeated_blocks(network))
    if not blocks:
        raise ValueError("fit.compile: the network has no sequence of equal blocks to compile; leave it out")
    layers: list[Any] = [layer for block in blocks for layer in block.modules() if isinstance(layer, Adapted)]
    # Bound methods, because a copy of the network must call its own modules; a closure would call the original ones.
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
            del module.forward  # back to that of the class


def check_compilable(network: nn.Module, device: torch.device) -> None:
    """Compile a sum on a device, so that an error comes now and not in the first training step.

    Args:
        network: the network whose blocks would be compiled.
        device: the device that would train it.

    Raises:
        ValueError: the network has no repeated blocks.
        RuntimeError: nothing can be compiled here.
    """
    with compiled_blocks(network, 1):
        torch.compile(_plus_one, backend=BACKEND)(torch.zeros(2, device=device))


def _plus_one(x: Tensor) -> Tensor:
    return x + 1


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the repeated blocks of a network.

    They are the members of every sequence of modules of one type that have submodules, and no such sequence within.

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
        usual = len(x) == size and not prefixes_act()
        return (compiled if usual else forward)(block, x, *args, **kwargs)

    return choose
