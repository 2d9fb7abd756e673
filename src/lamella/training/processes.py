"""Several processes that learn one thing together, each on its share of every batch.

`torchrun`, or `srun` on SLURM, starts the processes. Every draw has a name (`common/randomness.py`), so all of them
draw the same numbers without a word. Only these travel:

    gradients of the trained tensors, and the loss      `sum_gradients`, once a step
    sums over samples, such as second moments           `summed`, once a pass
    rows of features and of logits                      `gathered`, once a pass

Process 0 alone writes (`leads`), and tells the others what it reads or decides (`from_first`). Where there is one
process, each of these functions leaves everything as it is.

CPUs talk through gloo, GPUs through NCCL. A process that ends closes its connections of gloo, which the others notice
at their next message; a message of NCCL would wait for it, so one of gloo goes ahead of each.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from lamella.common.randomness import named_seed
from lamella.training.launching import Launched, first_node, launched

__all__ = [
    "OtherEnded",
    "check_shared",
    "count",
    "from_first",
    "gathered",
    "held",
    "joined",
    "leads",
    "number",
    "own_seed",
    "same",
    "share",
    "shares",
    "sum_gradients",
    "summed",
]

TIMEOUT = timedelta(hours=2)
"""How long a process waits for one that neither answers nor closes its connections, as when its machine has vanished. A
process that ends is noticed at once; so long may process 0 do something alone, such as waiting for a lock."""
START = timedelta(minutes=10)
"""How long the processes of a command wait for each other to begin."""
MOMENT = 1.0
"""Seconds in which all processes meet the same error, of which one speaks."""
SEEN = 10.0
"""Seconds after which a file that one machine wrote is seen by all that share the folder."""

T = TypeVar("T")

_alone: ContextVar[bool] = ContextVar("lamella_alone", default=False)
_stores: list[Any] = []
"""What all processes can write words into; empty where there is one process."""


class OtherEnded(ConnectionError):
    """Another process has ended, so that this one cannot go on."""


@contextmanager
def joined() -> Iterator[None]:
    """Learn together with the other processes that a launcher has started, within the context.

    All processes run the same code. What the others than process 0 print is dropped. An error in one of them ends all:
    it is raised where it arose, and the others leave with `SystemExit`, unless theirs is another one.

    Raises:
        RuntimeError: torch cannot make processes talk here.
    """
    me = launched()
    if me.count == 1:
        yield
        return
    if not dist.is_available():
        raise RuntimeError("this build of torch has no torch.distributed, so processes cannot learn together")
    _join(me)
    with ExitStack() as quiet:
        if me.number:
            nowhere = quiet.enter_context(Path(os.devnull).open("w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        try:
            try:
                yield
            except SystemExit as left:
                if left.code:
                    raise
            with _noticing():
                dist.barrier()
        except BaseException as error:
            spoken = _spoken_elsewhere(error, me)
            _leave(me, wait=True)
            if spoken:
                raise SystemExit(2) from error
            raise
        _leave(me, wait=False)


def _join(me: Launched) -> None:
    # Not at the top, since some builds of torch have neither.
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.rendezvous import rendezvous

    if "MASTER_ADDR" not in os.environ:  # srun says no place to meet
        os.environ["MASTER_ADDR"] = first_node(os.environ.get("SLURM_STEP_NODELIST", "localhost"))
    if "MASTER_PORT" not in os.environ:
        job, step = (int(os.environ.get(f"SLURM_{name}_ID", "0")) for name in ("JOB", "STEP"))
        os.environ["MASTER_PORT"] = str(20000 + (31 * job + step) % 20000)
    os.environ |= {"RANK": str(me.number), "WORLD_SIZE": str(me.count)}
    store, *_ = next(iter(rendezvous("env://", timeout=START)))
    both = torch.cuda.is_available()
    if both and me.local < torch.cuda.device_count():
        torch.cuda.set_device(me.local)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if both else "gloo",
        store=PrefixStore("lamella/group", store),
        rank=me.number,
        world_size=me.count,
        timeout=TIMEOUT,
    )
    _stores.append(PrefixStore("lamella/words", store))


def _leave(me: Launched, *, wait: bool) -> None:
    """Close the connections; process 0 may keep the words, which the others read first where they have to `wait`."""
    store = _stores.pop()
    dist.destroy_process_group()
    with suppress(RuntimeError):  # process 0 is gone, and its words with it
        store.set(f"left-{me.number}", "")
        given_up = time.monotonic() + 3 * MOMENT * (wait and not me.number)
        while time.monotonic() < given_up and not store.check([f"left-{other}" for other in range(me.count)]):
            time.sleep(MOMENT / 50)


def _spoken_elsewhere(error: BaseException, me: Launched) -> bool:
    """Tell the others why this process ends, and return whether another one says so to the user."""
    if me.number and not isinstance(error, OtherEnded):
        time.sleep(MOMENT)  # where all meet the same error, process 0 speaks
    text = f"exit status {error.code}" if isinstance(error, SystemExit) else str(error) or type(error).__name__
    try:
        told = _stores[-1].compare_set("ended", "", f"{me.number} {text}").decode()
    except RuntimeError:
        return False
    who, _, what = told.partition(" ")
    return int(who) != me.number and (what == text or isinstance(error, OtherEnded))


@contextmanager
def _noticing() -> Iterator[None]:
    """Say in one line that another process has ended, where a message to it fails within the context."""
    try:
        yield
    except RuntimeError as error:
        raise OtherEnded(_why()) from error


def _why() -> str:
    hint = "start all processes again with --resume (lamella learn: with the same words) to go on"
    with suppress(RuntimeError):
        if _stores[-1].check(["ended"]):
            who, _, what = _stores[-1].get("ended").decode().partition(" ")
            return f"process {who} has ended: {what}"
        return f"another process of this command was killed or lost; {hint}"
    return f"process 0 was killed or lost; {hint}"


def count() -> int:
    """Return how many processes learn together; 1 where this one works alone."""
    return dist.get_world_size() if _stores and not _alone.get() else 1


def number() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def leads() -> bool:
    """Return whether this is the process that writes files and prints."""
    return number() == 0


def own_seed(seed: int) -> int:
    """Return a seed for draws that differ between processes, such as dropout; that of process 0 is the one given."""
    return seed if leads() else named_seed(seed, "process", number())


def from_first(what: Callable[[], T]) -> T:
    """Call a function in process 0 alone, and return in all processes what it returns, or raise what it raises.

    Args:
        what: the function; its result can be pickled. In it there is one process.
    """
    if count() == 1:
        return what()
    told: list[Any] = [None]
    if leads():
        token = _alone.set(True)
        try:
            told = [(what(), None)]
        except Exception as error:  # all processes shall have it
            told = [(None, error)]
        finally:
            _alone.reset(token)
    with _noticing():
        dist.broadcast_object_list(told, src=0)
    value, error = told[0]
    if error is not None:
        raise error
    return value


@contextmanager
def held(hold: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter a context, such as that of a lock, in process 0 for all of them.

    Args:
        hold: makes the context. An error on entering is raised in all processes.
    """
    with ExitStack() as stack:
        from_first(lambda: (stack.enter_context(hold()), None)[1])
        yield


def same(what: str, told: Callable[[], str]) -> None:
    """Make sure that something is the same in all processes.

    Args:
        what: its name, for the message.
        told: returns what is compared, such as a digest; not called where there is one process.

    Raises:
        RuntimeError: it differs.
    """
    if count() == 1:
        return
    first, *others = _from_all(told())
    for other, its in enumerate(others, 1):
        if its != first:
            raise RuntimeError(
                f"process {other} has another {what} than process 0, so they cannot learn together; start all "
                "processes with the same words, versions and data, on machines of one kind"
            )


def check_shared(folder: Path) -> None:
    """Make sure that all processes see the folder that process 0 writes to.

    Raises:
        ValueError: a process does not see it.
    """
    if count() == 1:
        return
    probe = folder / from_first(lambda: _touched(folder))
    given_up = time.monotonic() + SEEN
    while not (seen := probe.exists()) and time.monotonic() < given_up:
        time.sleep(SEEN / 100)
    everywhere = _from_all(seen)
    from_first(probe.unlink)
    if not all(everywhere):
        raise ValueError(
            f"process {everywhere.index(False)} does not see what process 0 writes to '{folder}'; choose a folder that "
            "all machines share"
        )


def _touched(folder: Path) -> str:
    name = f".{token_hex(4)}.part"  # which is swept up as a half-written file after a kill
    (folder / name).touch()
    return name


def _from_all(value: Any) -> list[Any]:
    """Return the values of all processes, by their number."""
    found = [value] * count()
    with _noticing():
        dist.all_gather_object(found, value)
    return found


def share(order: Tensor) -> Tensor:
    """Return this process's part of rows; parts are contiguous, and their sizes differ by at most one.

    Args:
        order: (n, ...), the rows of all processes.
    """
    return order.tensor_split(count())[number()]


def shares(order: Tensor, sizes: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Return this process's part of each batch.

    Args:
        order: (n,) positions of samples, batch by batch.
        sizes: how many samples each batch has, n in all.

    Returns:
        The positions of its samples, batch by batch, and how many it has of each batch; none where a batch has fewer
        samples than there are processes.
    """
    if count() == 1:
        return order, list(sizes)
    parts = [share(batch) for batch in order.split(list(sizes))] if sizes else []
    return torch.cat([order[:0], *parts]), [len(part) for part in parts]


@torch.no_grad()
def summed(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sums over all processes, with one message for all of one dtype.

    Args:
        tensors: in each process as many, of the same shapes and dtypes, in the same order.
    """
    if count() == 1:
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        with _noticing():
            _await_all(flat.device)
            dist.all_reduce(flat)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def sum_gradients(tensors: Sequence[Tensor], value: Tensor | float, *, first: bool) -> Tensor | float:
    """Replace the gradients of tensors by their sums over all processes, and return the sum of a loss.

    Args:
        tensors: the trained tensors; one without a gradient in this process counts as zero.
        value: this process's part of the loss.
        first: whether tensors that have no gradient in any process are told apart. They keep none then.
    """
    if count() == 1:
        return value
    had = torch.tensor([tensor.grad is not None for tensor in tensors], dtype=torch.int64)
    if first:
        summed([had])
    for tensor in tensors:
        if tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
    loss = torch.as_tensor(value, dtype=torch.float32, device=tensors[0].device).detach().reshape(1).clone()
    summed([*(tensor.grad for tensor in tensors if tensor.grad is not None), loss])
    if first:
        for tensor, n in zip(tensors, had.tolist(), strict=True):
            tensor.grad = tensor.grad if n else None
    return loss[0]


def gathered(parts: Sequence[Mapping[str, Tensor]], rows: int, device: torch.device) -> dict[str, Tensor]:
    """Put the rows of all processes together.

    Args:
        parts: of this process by name, batch by batch, the rows (n, ...) of `share(arange(rows))`.
        rows: how many there are in all processes.
        device: where they are.

    Returns:
        By name (rows, ...), in the order of the processes.
    """
    own = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    if count() == 1:
        return own
    forms = from_first(lambda: {name: (part.shape[1:], part.dtype) for name, part in own.items()})
    sizes = [len(part) for part in torch.arange(rows).tensor_split(count())]
    found: dict[str, Tensor] = {}
    for name, (shape, dtype) in forms.items():
        # As bytes, so that it does not matter which types a way of talking knows.
        whole = torch.zeros(max(sizes), *shape, dtype=dtype, device=device)
        if name in own:
            whole[: sizes[number()]] = own[name]
        sent = whole.reshape(-1).view(torch.uint8)
        received = [torch.empty_like(sent) for _ in sizes]
        with _noticing():
            _await_all(device)
            dist.all_gather(received, sent)
        found[name] = torch.cat([r.view(dtype).view_as(whole)[:n] for r, n in zip(received, sizes, strict=True)])
    return found


def _await_all(device: torch.device) -> None:
    """Wait until all processes are here, where a message would wait for one that has ended."""
    if device.type != "cpu":
        dist.all_reduce(torch.zeros(1))
