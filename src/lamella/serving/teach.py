"""Learning in a process of its own: `python -m lamella.serving.teach MODEL FOLDER NAME`, started by the server.

What it does is what `lamella learn MODEL FOLDER` does. It tells how far it is on its standard output, a JSON object a
line; the last one has "done" or "error".
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from lamella.data.folders import load_folder
from lamella.data.keeping import keep_decoded
from lamella.learner import Learner
from lamella.locks import alone
from lamella.next_task import as_next_task
from lamella.progress import Progress

__all__ = ["main", "teach"]

Say = Callable[[dict[str, Any]], None]
SECONDS_BETWEEN = 0.2
PLACE_IN_LINE = 5
"""Niceness: those who wait for a prediction come first."""


def teach(model: Path, folder: Path, name: str, say: Say) -> dict[str, Any]:
    """Learn the class folders in `folder` as the model's next task; returns its record.

    Raises:
        ValueError: an image cannot be decoded, or a class has none to learn from.
        RuntimeError: another process is learning into the model.
    """
    source = load_folder(folder, name=name, layout="classes")
    source = replace(source, train=keep_decoded(source.train), test=keep_decoded(source.test))
    with alone(model, "another process is learning into this model; try again when it is done"):
        learner = Learner.load(model)
        task, held_back = as_next_task(source, learner)
        known = set(learner.class_names.values())
        say({"classes": list(task.class_names), "new": [n for n in task.class_names if n not in known]})
        record = learner.learn(task, held_back=held_back, progress=_reporting(say))
        learner.save(model, what=f"learned {name}")
    return record


def _reporting(say: Say) -> Progress:
    @contextmanager
    def report(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
        done, spoken = 0, 0.0

        def advance(steps: int, note: str = "") -> None:
            nonlocal done, spoken
            done += steps
            if done >= total or time.monotonic() - spoken > SECONDS_BETWEEN:
                spoken = time.monotonic()
                say({"step": description, "steps": done, "of": total})

        advance(0)
        yield advance

    return report


def main() -> None:
    """The arguments and the answer of the process; a mistake is the last line, and nothing is learned."""
    channel = _only_channel()

    def say(what: dict[str, Any]) -> None:
        channel.write(json.dumps(what) + "\n")
        channel.flush()

    if hasattr(os, "nice"):
        os.nice(PLACE_IN_LINE)
    model, folder, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    try:
        say({"done": teach(model, folder, name, say)})
    except BrokenPipeError:  # the server is gone, and with it the one who wanted to know
        sys.exit(1)
    except (ValueError, RuntimeError, OSError) as error:
        # Names of the archive, not of the place where it was unpacked.
        say({"error": " ".join(str(error).replace(f"{folder}{os.sep}", "").split())})
        sys.exit(1)


def _only_channel() -> TextIO:
    """Standard output, which from now on is the server's alone: what libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


if __name__ == "__main__":
    main()
