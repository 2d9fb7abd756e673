"""Progress bars on the terminal, or none."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Progress", "bars", "lines", "silent"]

Progress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""`progress(description, total)` opens a bar and yields a function; calling it with (steps, note) advances the bar."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show no progress bar."""
    yield lambda steps, note="": None


@contextmanager
def lines(description: str, total: int, *, seconds: float = 60.0) -> Iterator[Callable[[int, str], None]]:
    """Print a line about the progress from time to time, for a log.

    Args:
        description: what is going on.
        total: the number of its steps.
        seconds: the least time between two lines.
    """
    done, spoken = 0, time.monotonic()

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, spoken
        done += steps
        if time.monotonic() - spoken >= seconds:
            spoken = time.monotonic()
            print(f"{description}: {done} of {total} steps{f', {note}' if note else ''}", flush=True)

    yield advance


@contextmanager
def bars(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar of rich that disappears when done; a line a minute if the output is a file or a pipe."""
    from rich import console, progress

    if not console.Console().is_terminal:
        with lines(description, total) as advance:
            yield advance
        return

    columns = (
        progress.TextColumn("{task.description:<34}"),
        progress.BarColumn(bar_width=28),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    # Drawn twice a second: rich's ten times take a noticeable share of a small model's training.
    with progress.Progress(*columns, transient=True, refresh_per_second=2) as display:
        bar = display.add_task(description, total=total, note="")
        yield lambda steps, note="": display.update(bar, advance=steps, note=note)
