"""One trial in a process of its own.

`local.Processes` starts it: `python -m lamella.experiments.sweep.worker FOLDER`. The configuration comes as a line of
JSON on standard input. The input stays open as long as the sweep lives; when it closes, the process ends at once, and
the run can go on later. So no run is left behind by a sweep that was killed. Other engines call `carry_out` in a
process that is theirs.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

__all__ = ["LOG", "carry_out", "environment"]

LOG = "output.log"
"""In the run directory of a trial: what its process printed, and the traceback if it failed."""


def carry_out(config: Mapping[str, Any], folder: str, place: str, environ: Mapping[str, str]) -> str:
    """Run a trial in this process, which sees the same files as the sweep.

    Args:
        config: the complete configuration.
        folder: the run directory.
        place: the directory that relative paths of the configuration start from.
        environ: variables of the environment, see `environment`.

    Returns:
        Why it failed, in one line; "" where it did not.
    """
    os.chdir(place)
    os.environ.update(environ)
    from lamella.common.printable import one_line
    from lamella.experiments.run import run

    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / LOG).open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            run(dict(config), Path(folder), resume=True)
        except Exception as error:  # the reason goes to who started the sweep
            traceback.print_exc()
            return one_line(f"{type(error).__name__}: {error}")
    return ""


def environment() -> dict[str, str]:
    """Return what a process elsewhere needs of this one's environment: where data and weights are."""
    return {name: value for name, value in os.environ.items() if name.startswith(("LAMELLA_", "HF_"))}


def main() -> None:
    """Run the configuration in the folder that is named, from where an earlier process stopped."""
    config = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    from lamella.experiments.run import run

    run(config, Path(sys.argv[1]), resume=True)


def _end_with_the_sweep() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
