"""One trial in a process of its own, started by `local.Processes`: `python -m lamella.experiments.sweep.worker FOLDER`.

The configuration comes as a line of JSON on standard input. The input stays open as long as the sweep lives; when it
closes, the process ends at once, and the run can go on later. So no run is left behind by a sweep that was killed.
"""

import json
import os
import sys
import threading
from pathlib import Path


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
