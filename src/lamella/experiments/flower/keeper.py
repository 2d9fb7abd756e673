"""A process that ends those of a run under Flower where the command that has started them is killed.

    python keeper.py FOLDER

Each line of standard input is the number of a process group. Where the input ends, which it does with the command
however that ends, the groups are killed and the folder is removed; the line "done" says that nothing is left to do.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress


def main() -> None:
    """Wait for the end of the command."""
    groups: list[int] = []
    for line in sys.stdin:
        if line.strip() == "done":
            return
        groups.append(int(line))
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    time.sleep(0.5)  # until none of them writes there any more
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
