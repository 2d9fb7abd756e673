"""Sets of labelled samples, and their batches, the next one prepared while the current one is used."""

import queue
import threading
from collections.abc import Generator, Sequence
from typing import Protocol, Self, runtime_checkable

from torch import Tensor

from lamella.data.samples import Samples, View

__all__ = ["Examples", "batch_sizes", "batches", "step_sizes"]


@runtime_checkable
class Examples(Protocol):
    """A set of labelled samples: an ImageSet, a TensorSet, or one that holds samples of another kind.

    Attributes:
        labels: (n,) int64 global class ids; -1 where the class is not known.
        keys: a stable identity of each sample; no two are equal.
        noun: what one sample is called in messages, such as "image"; several are called by it with an "s".
    """

    labels: Tensor
    keys: tuple[str, ...]
    noun: str

    def __len__(self) -> int: ...

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        """The samples at these positions of this set, in this order."""
        ...

    def relabelled(self, labels: Tensor, keys: Sequence[str] | None = None) -> Self:
        """The same samples with other labels (n,), and with other keys where they are given."""
        ...

    def concatenate(self, others: Sequence[Self]) -> Self:
        """One set that holds the samples of this one and then those of the others, in order.

        Raises:
            ValueError: a key comes twice.
        """
        ...

    def batch(self, index: Tensor | Sequence[int], view: View) -> Samples:
        """The samples at these positions as inputs; `view` makes them, where the set holds raw samples."""
        ...

    def identity(self, i: int) -> bytes:
        """What is another one where the content of sample i has changed."""
        ...


def batch_sizes(n: int, size: int) -> list[int]:
    """How many of n examples each step of an epoch sees. One that is left over joins the batch before it.

    >>> batch_sizes(11, 4), batch_sizes(9, 4), batch_sizes(1, 4)
    ([4, 4, 3], [4, 5], [1])
    """
    whole, rest = divmod(n, size)
    if whole and rest == 1:
        return [size] * (whole - 1) + [size + 1]
    return [size] * whole + [rest] * bool(rest)


def step_sizes(n: int, size: int, accumulate: int) -> list[list[int]]:
    """How many examples each batch of each step of an epoch sees, where gradients of several batches make one step.

    >>> step_sizes(11, 2, 2), step_sizes(4, 2, 1)
    ([[2, 2], [2, 2], [3]], [[2], [2]])
    """
    return [batch_sizes(step, size) for step in batch_sizes(n, size * accumulate)]


def batches(
    data: Examples, order: Tensor, batch_size: int | Sequence[int], view: View
) -> Generator[tuple[Samples, Tensor, Tensor], None, None]:
    """The samples in this order, batch by batch; a thread reads one batch ahead.

    An error while reading is raised to the consumer at its place in the order. The thread ends with the iterator, also
    when the consumer stops early.

    Args:
        data: the set.
        order: (k,) positions in the set; any subset, any order.
        batch_size: samples a batch, at least 1; the last batch may be smaller. Or the size of each batch, k in all.
        view: how raw samples become inputs.

    Yields:
        Inputs of n samples, labels (n,), and index (n,) of the samples in the set.
    """
    if isinstance(batch_size, int) and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    sizes = batch_size if isinstance(batch_size, int) else list(batch_size)
    return _prefetched(data, order.split(sizes) if len(order) else (), view)


Item = tuple[Samples, Tensor, Tensor] | BaseException | None


def _prefetched(
    data: Examples, chunks: tuple[Tensor, ...], view: View
) -> Generator[tuple[Samples, Tensor, Tensor], None, None]:
    ready: queue.Queue[Item] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def hand_over(item: Item) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.05)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for index in chunks:
                if stopped.is_set():
                    return
                hand_over((data.batch(index, view), data.labels[index], index))
            hand_over(None)
        except BaseException as error:  # whatever went wrong belongs to the consumer
            hand_over(error)

    thread = threading.Thread(target=read, name="lamella-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
