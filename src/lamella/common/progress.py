"""Progress bars on the terminal, or none."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Progress", "bars", "silent"]

Progress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""`progress(description, total)` opens a bar and yields a function; calling it with (steps, note) advances the bar."""


@contextmanager
def silent(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show no progress bar."""
    yield lambda steps, note="": None


@contextmanager
def bars(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar of rich that disappears when done; none if the output is a file or a pipe."""
    from rich import console, progress

    columns = (
        progress.TextColumn("{task.description:<34}"),
        progress.BarColumn(bar_width=28),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    # Drawn twice a second: rich's ten times take a noticeable share of a small model's training.
    silent_here = not console.Console().is_terminal
    with progress.Progress(*columns, transient=True, refresh_per_second=2, disable=silent_here) as display:
        bar = display.add_task(description, total=total, note="")
        yield lambda steps, note="": display.update(bar, advance=steps, note=note)
