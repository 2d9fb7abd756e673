"""The training process that the server starts: `python -m lamella.serving.worker MODEL SENT NAME DEVICE TRUST`.

DEVICE is "" for a GPU if there is one, TRUST is "" or "untrusted". It does the same as `lamella learn MODEL DATA` with
what was sent. It reports its progress on standard output, as one JSON object per line. "still" is how many seconds it
expects to need from then on. The last object has the key "done" or "error".
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from lamella.common.progress import Progress
from lamella.data.sources.readable import ReadableData
from lamella.data.tasks import Unreadable
from lamella.learner.expected_costs import expect_costs
from lamella.learner.folder import ModelFolder
from lamella.learner.learning import fitting_task
from lamella.learner.records import TaskRecord
from lamella.serving.sent import read_sent
from lamella.serving.uploads_kept import CHECKPOINTS, samples_sent, sent_again, tasks_before

__all__ = ["UNTRUSTED", "main", "teach"]

Say = Callable[[dict[str, Any]], None]
SECONDS_BETWEEN = 0.2
UNTRUSTED = "untrusted"
PLACE_IN_LINE = 5
"""The niceness of the process: predictions have priority over training."""


def teach(
    model: Path, sent: Path, name: str, say: Say, device: str | None = None, *, trusted: bool = True
) -> TaskRecord:
    """Learn an upload as the model's next task, or resume an interrupted attempt.

    Samples that cannot be read, and answers that do not fit into the model, are left out and reported.

    Args:
        model: the model's folder.
        sent: the folder of an upload (`Upload`).
        name: the name of the task.
        say: a function that sends one message to the server.
        device: what to compute on; None for a GPU if there is one.
        trusted: False for a folder of a stranger; see `Learner.load`.

    Returns:
        The record of the learned task.

    Raises:
        FileNotFoundError: there is no model at `model`.
        ValueError: a class has too few images that can be read, or the model is damaged.
    """
    folder = ModelFolder(model, device=device, waiting=lambda busy: say({"step": f"waiting: {busy}"}), trusted=trusted)

    left_out: dict[str, str] = {}

    def leave_out(samples: Sequence[Unreadable]) -> None:
        left_out.update({sample.key: sample.reason for sample in samples})
        if samples:
            say({"unreadable": left_out})

    def read() -> ReadableData:
        found = read_sent(sent, name)
        leave_out(found.unreadable)
        return found

    with folder.learning(
        read,
        again=sent_again(sent),
        place=sent / CHECKPOINTS,
        since=tasks_before(sent),
    ) as learning:
        known = set(learning.model.class_names.values())
        names = list(learning.task.class_names)
        say({"classes": names, "new": [name for name in names if name not in known]})
        _, too_long, told = fitting_task(learning.model, learning.task)
        leave_out(too_long)
        say({"told": told})
        if learning.stored is None and not learning.resumed.goes_on:
            say({"step": "measuring how long it will take"})
            say({"still": expect_costs(learning.copied(), learning.task, len(learning.held_back)).seconds})
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
    """Run the process. If learning fails, the last line holds the error, and the model is unchanged."""
    channel = _only_channel()

    def say(what: dict[str, Any]) -> None:
        channel.write(json.dumps(what) + "\n")
        channel.flush()

    if hasattr(os, "nice"):
        os.nice(PLACE_IN_LINE)
    model, sent = Path(sys.argv[1]), Path(sys.argv[2])
    name, device, trust = sys.argv[3:]
    try:
        say({"done": teach(model, sent, name, say, device or None, trusted=trust != UNTRUSTED).to_json()})
    except BrokenPipeError:  # the server has ended; the next one resumes the upload
        sys.exit(1)
    except (ValueError, RuntimeError, OSError) as error:
        # Name the files as in the archive, without the folder where they were unpacked.
        say({"error": " ".join(str(error).replace(f"{samples_sent(sent)}{os.sep}", "").split())})
        sys.exit(1)


def _only_channel() -> TextIO:
    """Return a stream to the server, and send what libraries print on standard output to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


if __name__ == "__main__":
    main()
