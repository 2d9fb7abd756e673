"""Methods that are classes in Python files of the user: "my_file.py:EMALoRA".

Such a file is code, and a model from a stranger may name one. So names are treated by where they come from:

* `name_file` takes a name that the caller wrote, in a command, a call or a configuration file. It runs the file.
* `class_of` and `recognise` take names that were read from a model. They use only files that the caller named in this
  process, or that the environment variable `LAMELLA_METHODS` lists; they run no other file.
"""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from lamella.common.checks import did_you_mean, first_line
from lamella.methods.method import Method

__all__ = [
    "LISTED",
    "OWN_FILE",
    "MethodFileChanged",
    "checked",
    "class_of",
    "digests",
    "is_own",
    "name_file",
    "recognise",
    "shown",
]

OWN_FILE = r".+?\.py:\w+"
"""A regular expression for the name of a class in a file."""
LISTED = "LAMELLA_METHODS"
"""The environment variable that lists the files that stored models may use, separated as in PATH."""


class MethodFileChanged(UserWarning):
    """The file of a model's method has changed since the model was stored."""


@dataclass(frozen=True)
class _File:
    """A Python file that was run.

    Attributes:
        sha256: the SHA-256 of the content that was run.
        module: the module that resulted.
    """

    sha256: str
    module: ModuleType


_run: dict[Path, _File] = {}
"""The files that may be used, by their absolute paths."""
_moved: dict[Path, Path] = {}
"""Paths that stored models name, and the paths of the files in this process that have the same content."""


def is_own(name: str) -> bool:
    """Return whether the name of a method means a class in a file.

    >>> is_own("my_file.py:EMALoRA"), is_own("inflora")
    (True, False)
    """
    return re.fullmatch(OWN_FILE, name) is not None


def shown(name: str) -> str:
    """Return a name without the folders of its file.

    >>> shown("/home/ada/my_file.py:EMALoRA"), shown("inflora")
    ('my_file.py:EMALoRA', 'inflora')
    """
    return f"{_path_of(name).name}:{_class_name(name)}" if is_own(name) else name


def name_file(name: str, folder: Path) -> str:
    """Run the file of a method that the caller has named, and let stored models use it from now on.

    Args:
        name: the name, such as "my_file.py:EMALoRA".
        folder: the folder that a relative path starts from.

    Returns:
        The name with the absolute path of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be run, has no such class, or the class is not a method.
    """
    path = _absolute(folder / _path_of(name).expanduser())
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file '{path}' for the method '{name}'; relative paths start at '{folder}'"
        )
    full = f"{path}:{_class_name(name)}"
    _moved.pop(path, None)
    _use(path)
    class_of(full)
    return full


def class_of(name: str) -> Callable[..., Method]:
    """Return the class with this full name.

    Args:
        name: the name with the absolute path of the file.

    Raises:
        ValueError: the caller has not named the file and `LAMELLA_METHODS` does not list it, or it has no such class,
            or the class is not a method.
    """
    path = _path_of(name)
    path = _moved.get(path, path)
    if path not in _run:
        if path not in _listed() or not path.is_file():
            raise ValueError(_refusal(name))
        _use(path)
    return _class_in(_run[path].module, path, _class_name(name))


def recognise(name: str, recorded: str | None) -> None:
    """Find the file of a name that was read from a model, among the files that may be used.

    A file that moved is found by its content. A file that has changed is used as it is now, with the warning
    `MethodFileChanged`.

    Args:
        name: the name, with the absolute path that the file had.
        recorded: the SHA-256 that the file had; None if it was not recorded.

    Raises:
        ValueError: the caller has not named the file, and `LAMELLA_METHODS` does not list it.
    """
    path, files = _path_of(name), _usable()
    if path in files:
        if recorded not in (None, sha256(path.read_bytes()).hexdigest() if path not in _run else _run[path].sha256):
            warnings.warn(
                f"'{path}' has changed since this model was stored, so it may predict and learn otherwise than it did; "
                "to be sure, put back the file as it was",
                MethodFileChanged,
                stacklevel=2,
            )
        _moved.pop(path, None)
        return
    found = [file for file in files if recorded == sha256(file.read_bytes()).hexdigest()]
    if not found:
        raise ValueError(_refusal(name))
    _moved[path] = found[0]


def digests(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the file of each name that means a class in a file, by name."""
    own = {name: _path_of(name) for name in names if is_own(name)}
    return {name: _run[_moved.get(path, path)].sha256 for name, path in own.items()}


def checked(found: object, what: str) -> Callable[..., Method]:
    """Check that an object is the class of a method, and return it.

    Args:
        found: the object.
        what: the object in words, for the error message.

    Raises:
        ValueError: the object is not a class, does not derive from `lamella.Method`, or lacks `learn`.
    """
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise ValueError(f"{what} is not a subclass of lamella.Method; derive it from that class")
    if inspect.isabstract(found):
        raise ValueError(f"{what} does not write {', '.join(sorted(found.__abstractmethods__))}, which a method must")
    return found


def _path_of(name: str) -> Path:
    return Path(name.rpartition(":")[0])


def _class_name(name: str) -> str:
    return name.rpartition(":")[2]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  (without following links, and without "..")


def _listed() -> Iterator[Path]:
    """Yield the absolute paths of the files in the environment variable."""
    return (_absolute(Path(entry).expanduser()) for entry in os.environ.get(LISTED, "").split(os.pathsep) if entry)


def _usable() -> list[Path]:
    """Return the existing files that stored models may use; those that were named last come first."""
    return [path for path in dict.fromkeys([*reversed(_run), *_listed()]) if path.is_file()]


def _use(path: Path) -> None:
    """Run a file, unless it was already run with the same content."""
    content = path.read_bytes()
    digest = sha256(content).hexdigest()
    if path in _run and _run[path].sha256 == digest:
        return
    name = f"lamella_own_{path.stem}_{sha256(bytes(path) + content).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"'{path}' cannot be run: {_what_went_wrong(error, path)}") from error
    _run[path] = _File(digest, module)


def _what_went_wrong(error: BaseException, path: Path) -> str:
    """Return the error as one line, with the number of the line in the file that raised it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
        trace = trace.tb_next
    return f"{type(error).__name__}: {first_line(error)} (line {line})"


def _class_in(module: ModuleType, path: Path, name: str) -> Callable[..., Method]:
    """Return a class of a file that was run.

    Raises:
        ValueError: the file has no such class, or the class does not derive from `lamella.Method`, or it lacks `learn`.
    """
    found = vars(module).get(name)
    methods = [n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__]
    if found is None:
        hint = did_you_mean(name, methods) or f"; its classes are {', '.join(methods) or 'none'}"
        raise ValueError(f"'{path}' has no class '{name}'{hint}")
    return checked(found, f"'{name}' in '{path}'")


def _refusal(name: str) -> str:
    """Return the error message for a file that was neither named nor listed."""
    path, method = _path_of(name), _class_name(name)
    if path.is_file():
        start, place = f"loading this runs the method '{method}' of the file '{path}'; if you trust it, name it", path
    else:
        start = (
            f"the method '{method}' of this is in the file '{path}', which is not there, and no file that you named "
            "has the content that it had; name the same file elsewhere"
        )
        place = Path("FOLDER", path.name)
    return (
        f"{start}: {LISTED}={place} before any command, --method {place}:{method} for `lamella learn`, or "
        f"Learner.load(..., method='{place}:{method}')"
    )
