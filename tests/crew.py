"""Processes that learn together, forked from one that has imported everything, so that each starts at once."""

import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

__all__ = ["Ended", "command", "crew"]

FORKS = get_context("forkserver") if os.name == "posix" else get_context("spawn")
if os.name == "posix":
    FORKS.set_forkserver_preload(
        ["pytest", "torch", "lamella.cli", "lamella.experiments.run", "lamella.learner.expected_costs", "rich.progress",
         "lamella.data.sources.readable", "timm.models.vision_transformer", "filelock", "PIL.PngImagePlugin"]
    )  # fmt: skip


@dataclass
class Ended:
    """A process that has ended.

    Attributes:
        code: its exit code; -9 where it was killed.
        out: what it printed.
        err: what it printed on standard error.
        result: what the function has returned; None where it did not.
    """

    code: int | None
    out: str
    err: str
    result: Any


def crew(folder: Path, count: int, call: Callable[..., Any], *args: Any) -> list[Ended]:
    """Call a function in so many processes that a launcher seems to have started; what became of each.

    Args:
        folder: where what they print and return goes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    places = [folder / f"process-{number}" for number in range(count)]
    workers = []
    for number, place in enumerate(places):
        place.mkdir(parents=True, exist_ok=True)
        (place / "result").unlink(missing_ok=True)
        env = {**told, "RANK": str(number), "LOCAL_RANK": str(number)}
        workers.append(FORKS.Process(target=_work, args=(place, env, call, args)))
        workers[-1].start()
    ended: list[Ended] = []
    for worker, place in zip(workers, places, strict=True):
        worker.join(120)
        if worker.exitcode is None:  # it hangs, which no test wants
            worker.kill()
        kept = place / "result"
        result = pickle.loads(kept.read_bytes()) if kept.exists() else None
        ended.append(Ended(worker.exitcode, (place / "out").read_text(), (place / "err").read_text(), result))
    return ended


def command(words: Sequence[object], before: Callable[[], None] | None = None) -> None:
    """Run a `lamella` command, after a function that may change something in this process."""
    from lamella.cli import main

    if before is not None:
        before()
    sys.argv = ["lamella", *map(str, words)]
    main()


def _work(place: Path, env: dict[str, str], call: Callable[..., Any], args: Sequence[Any]) -> None:
    os.environ.update(env)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.fsync = lambda _: None  # as in conftest.py
    result = call(*args)
    (place / "result").write_bytes(pickle.dumps(result))
