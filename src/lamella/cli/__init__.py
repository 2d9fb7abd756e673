"""The command line, with one file per command. Heavy libraries are imported only when a command needs them."""

import os
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import typer

from lamella.cli.app import app
from lamella.cli.output import say
from lamella.common.launched import launched
from lamella.common.printable import one_line

__all__ = ["app", "main"]

# The base class of all errors in options and arguments. Typer exports only its subclass BadParameter.
USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")
OWN_ERRORS = (ValueError, TypeError, RuntimeError, OSError, ImportError)
TOGETHER = ("run", "learn")
"""The commands that several processes work on together."""
GROUPS = [[group.name] for group in app.registered_groups]


def main() -> None:
    """Run the command line. An error is one line on stderr and exit code 2; LAMELLA_DEBUG=1 adds a traceback."""
    arguments = sys.argv[1:]
    if not arguments or arguments in GROUPS:
        arguments = [*arguments, "--help"]
    try:
        with warnings.catch_warnings(), _with_others(arguments):
            warnings.showwarning = partial(_say_warning, warnings.showwarning)
            sys.exit(app(arguments, prog_name="lamella", standalone_mode=False))
    except USAGE_ERROR as error:
        _complain(f"{_usage(error)} ({_help_command(arguments)} tells more)")
    except OWN_ERRORS as error:
        if os.environ.get("LAMELLA_DEBUG") == "1":
            raise
        _complain(_told(error))
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted", code=130)


def _with_others(arguments: list[str]) -> AbstractContextManager[None]:
    """The context in which processes that `torchrun` or `srun` has started learn together.

    Raises:
        ValueError: the command is for one process.
    """
    me = launched()
    if me.count == 1:
        return nullcontext()  # without importing torch
    if arguments[0] not in TOGETHER:
        if me.number:
            sys.exit(2)  # process 0 says why
        known = " and ".join(f"`lamella {name}`" for name in TOGETHER)
        raise ValueError(
            f"{me.count} processes were started with `lamella {arguments[0]}`, and only {known} learn with several; "
            "start one, without torchrun or srun"
        )
    # Where a process is lost, torch writes how its messages failed, beside our line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from lamella.training.processes import joined

    return joined()


def _say_warning(otherwise: Any, message: Warning | str, category: type[Warning], *where: Any) -> None:
    """A warning of Lamella's own kinds is one line, as an error is; others look as Python shows them."""
    if category.__module__.partition(".")[0] == "lamella":
        say(f"lamella: {message}", err=True)
    else:
        otherwise(message, category, *where)


def _usage(error: Any) -> str:
    """Return the message of an error in an option, with the value that was given, which Typer 0.21 and later omit."""
    text = error.format_message().replace("Value error, ", "")
    found = getattr(error.__cause__, "errors", list)()
    return f"{text}, not {found[0]['input']!r}" if found and "ctx" in found[0] else text


def _help_command(arguments: list[str]) -> str:
    known = {command.name for command in (*app.registered_commands, *app.registered_groups)}
    return f"lamella {arguments[0]} --help" if arguments[0] in known else "lamella --help"


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error) or type(error).__name__
    # These two may also be a bug in Lamella; a report of it needs the traceback.
    return f"{text} (LAMELLA_DEBUG=1 shows where)" if isinstance(error, (TypeError, RuntimeError)) else text


def _complain(text: str, *, code: int = 2) -> None:
    number = launched().number
    who = f"process {number}: " if number else ""
    say(f"lamella: {who}{one_line(text)}", err=True)
    sys.exit(code)
