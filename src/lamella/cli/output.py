"""Printing of messages that may contain untrusted names."""

from pathlib import Path

import typer

from lamella.common.printable import printable
from lamella.common.words import many

__all__ = ["say", "say_few_held_back", "say_uncalibrated"]


def say(line: str, *, err: bool = False, nl: bool = True) -> None:
    """Print one line. Line breaks and control characters in it, for example in file names, are escaped.

    Args:
        line: the text.
        err: whether to print on standard error.
        nl: whether to end the line.
    """
    typer.echo(printable(line), err=err, nl=nl)


def say_uncalibrated(model: Path, count: int, noun: str) -> None:
    """Print on standard error that confidences mean little, where no sample is held back to calibrate them with.

    Args:
        model: the model's folder.
        count: how many samples it has held back.
        noun: what one is called.
    """
    if not count:
        line = f"'{model}' has no {noun}s held back, so its confidences are not calibrated, and mostly far too high"
        say(f"{line}; teach it more {noun}s of each class", err=True)


def say_few_held_back(model: Path, count: int, noun: str) -> None:
    """Print on standard error that nothing can be called unknown, where too few samples are held back for that.

    Args:
        model: the model's folder.
        count: how many samples it has held back.
        noun: what one is called.
    """
    from lamella.learner.confidence import FEWEST

    if count < FEWEST:
        line = f"'{model}' has {many(count, noun)} held back, and below {FEWEST} none can be called unknown"
        say(f"{line}; teach it more {noun}s first", err=True)
