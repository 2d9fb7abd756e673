"""Learning in a process of its own: `python -m lamella.serving.worker MODEL SENT`, started by the server.

What it does is what `lamella learn MODEL SENT/images` does. It tells how far it is on its standard output, a JSON
object a line; the last one has "done" or "error".
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from lamella.common.progress import Progress
from lamella.data.sources.readable import load_readable
from lamella.learner.folder import ModelFolder
from lamella.learner.records import TaskRecord
from lamella.serving.uploads_kept import CHECKPOINTS, IMAGES, tasks_before

__all__ = ["main", "teach"]

Say = Callable[[dict[str, Any]], None]
SECONDS_BETWEEN = 0.2
PLACE_IN_LINE = 5
"""Niceness: those who wait for a prediction come first."""


def teach(model: Path, sent: Path, name: str, say: Say) -> TaskRecord:
    """Learn what was sent as the model's next task, from where an interrupted attempt stood; returns its record.

    Images that cannot be read are left out, and said.

    Args:
        sent: folder of a `Sent`. name: of the task.

    Raises:
        FileNotFoundError: there is no model any more.
        ValueError: a class has too few images that can be read; or the model is damaged.
    """
    folder = ModelFolder(model)
    source, unreadable = load_readable((sent / IMAGES).resolve(), name=name, layout="classes")
    if unreadable:
        say({"unreadable": {file.key: file.reason for file in unreadable}})
    with folder.learning(
        source,
        unreadable,
        place=sent / CHECKPOINTS,
        since=tasks_before(sent),
        waiting=lambda busy: say({"step": f"waits: {busy}"}),
    ) as learning:
        known = set(learning.model.class_names.values())
        names = list(learning.task.class_names)
        say({"classes": names, "new": [name for name in names if name not in known]})
        return learning.run(_reporting(say))


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
    model, sent, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    try:
        say({"done": teach(model, sent, name, say).to_json()})
    except BrokenPipeError:  # the server is gone; the next one goes on with what was sent
        sys.exit(1)
    except (ValueError, RuntimeError, OSError) as error:
        # Names of the archive, not of the place where it was unpacked.
        say({"error": " ".join(str(error).replace(f"{sent / IMAGES}{os.sep}", "").split())})
        sys.exit(1)


def _only_channel() -> TextIO:
    """Standard output, which from now on is the server's alone: what libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


if __name__ == "__main__":
    main()
