"""`lamella learn MODEL FOLDER --watch`: says what the model would make of what comes into a folder."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.cli.output import say
from lamella.common.words import many

if TYPE_CHECKING:
    from lamella.data.sources.readable import ReadableData
    from lamella.learner.proposals import Lookout, Proposal

__all__ = ["SECONDS", "watch"]

SECONDS = 2.0
"""Between two looks at the folder."""
NAMES = 8

State = dict[str, tuple[int, int]]


def watch(
    folder: Path,
    read: Callable[[Path], "ReadableData"],
    lookout: Callable[[], "Lookout"],
    teach: Callable[[Path], None] | None,
    *,
    command: Callable[[Path], str],
) -> None:
    """Look at a folder again and again, and say what is new in it. Ends only by an interruption.

    A data set is looked at once its files have stayed as they are for a while, so that what is still being copied in is
    left alone.

    Args:
        folder: the folder: one of class folders, or one into which tables and archives are put, each a data set.
        read: reads the data set at a place.
        lookout: returns what judges data; the same one until the model has changed.
        teach: teaches the data set at a place; None only says what would be done.
        command: the command that teaches it, for people.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder; --watch takes one, into which new data are put")
    say(f"watches '{folder}'; Ctrl-C ends it")
    before: dict[Path, State] = {}
    done: dict[Path, State] = {}
    while True:
        now = {place: _state(place) for place in _data_sets(folder)}
        for place, state in now.items():
            if state and before.get(place) == state != done.get(place):
                done[place] = state
                try:
                    proposal = lookout().look(read(place))
                    _say(place, proposal)
                    _go_on(place, proposal, teach, command)
                except (ValueError, OSError) as error:
                    say(f"{place}: {error}")
        before = now
        try:
            time.sleep(SECONDS)
        except KeyboardInterrupt:  # nothing is under way
            say("watches no longer")
            return


def _go_on(
    place: Path, proposal: "Proposal", teach: Callable[[Path], None] | None, command: Callable[[Path], str]
) -> None:
    """Say what is proposed, and teach it where that is wanted."""
    if not proposal.is_task:
        say(f"  no new task is proposed; {command(place)} learns them nevertheless")
    elif teach is None:
        say(f"  a new task is proposed: {command(place)} (with --teach it is learned at once)")
    else:
        say("  a new task, which is learned now")
        teach(place)


def _say(place: Path, proposal: "Proposal") -> None:
    say(f"{place}: {many(proposal.samples, proposal.noun)} that the model has not learned")
    for what, names in (("new classes", proposal.new), ("more of", proposal.more_of)):
        if names:
            more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
            say(f"  {what}: {', '.join(names[:NAMES])}{more}")
    if proposal.alarm is None:
        say("  whether they look like what was learned is not known: the model holds nothing back to compare with")
    else:
        say(f"  {proposal.alarm.told(proposal.noun)}")


def _data_sets(folder: Path) -> list[Path]:
    """The tables and archives in a folder, each a data set; the folder itself where there are none."""
    from lamella.data.sources.load import FILES

    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in FILES and path.is_file()]
    return files or [folder]


def _state(place: Path) -> State:
    """Size and time of every file of a data set, by its path."""
    found: State = {}
    for path in _files(place):
        try:
            about = path.stat()
        except OSError:  # it was taken away meanwhile
            continue
        found[str(path)] = (about.st_size, about.st_mtime_ns)
    return found


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for path in place.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts):
            yield path
