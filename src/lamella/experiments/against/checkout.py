"""A checkout of somebody's code, of which single functions are run.

A function is taken out of its file as it stands, with the plain constants beside it; the rest of the file is not run,
so what that imports (data loaders, loggers, debuggers) need not be there. What the function itself uses is given to it.
"""

import __future__

import ast
import copy
import logging
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["Checkout", "commit_of", "on_the_cpu"]

STANDARD: dict[str, Any] = {
    "F": torch.nn.functional,
    "Parameter": torch.nn.Parameter,
    "copy": copy,
    "logging": logging,
    "math": math,
    "nn": torch.nn,
    "np": np,
    "torch": torch,
}
"""What authors import under these names."""
SHA = re.compile(r"[0-9a-f]{40}")


class Checkout:
    """A folder with code.

    Args:
        path: of the folder.
        home: where such code comes from, for messages.
    """

    def __init__(self, path: Path, home: str) -> None:
        self.path, self.home = path, home

    def take(self, file: str, name: str, **names: Any) -> Any:
        """Return a function or a class of a file, without running the rest of it.

        Args:
            file: the file, relative to the checkout.
            name: the name, such as "Learner.optimise_ridge_parameter".
            names: what it uses beside `STANDARD`, the plain constants of its file, and what is built into Python.

        Raises:
            ValueError: there is no such file, or no such name in it.
        """
        place = self._place(file)
        tree = ast.parse(place.read_bytes(), str(place))
        found: Any = tree
        for part in name.split("."):
            inside = [node for node in found.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            found = next((node for node in inside if node.name == part), None)
            if found is None:
                raise ValueError(f"'{place}' has no {name}; {self._wanted()}")
        given = STANDARD | names
        constants = [node for node in tree.body if _is_constant(node, given)]
        module = ast.Module(body=[*constants, found], type_ignores=[])
        # Annotations are not evaluated: they name types that nobody needs here.
        code = compile(module, str(place), "exec", __future__.annotations.compiler_flag, dont_inherit=True)
        space: dict[str, Any] = {"__name__": "authors", **given}
        exec(code, space)
        return space[found.name]

    def module(self, file: str) -> Any:
        """Run a file as a module, and return it.

        Args:
            file: the file, relative to the checkout.

        Raises:
            ValueError: there is no such file.
        """
        place = self._place(file)
        module = ModuleType(f"authors_{place.stem}")
        module.__file__ = str(place)
        sys.modules[module.__name__] = module
        # Compiled here, because an import would leave bytecode in a folder that is not ours.
        exec(compile(place.read_bytes(), str(place), "exec", dont_inherit=True), vars(module))
        return module

    def _place(self, file: str) -> Path:
        place = self.path / file
        if not place.is_file():
            raise ValueError(f"'{self.path}' has no {file}; {self._wanted()}")
        return place

    def _wanted(self) -> str:
        return f"give a checkout of {self.home}, or of a commit whose names are these"


def _is_constant(node: ast.stmt, given: dict[str, Any]) -> bool:
    """Whether a statement gives a plain value to a name that has none yet."""
    if not isinstance(node, ast.Assign) or not all(isinstance(target, ast.Name) for target in node.targets):
        return False
    names = {target.id for target in node.targets if isinstance(target, ast.Name)}
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return not names & given.keys()


def commit_of(path: Path) -> str:
    """Return the commit that a checkout is at, by its own files; "" where they do not say."""
    head = path / ".git" / "HEAD"
    if not head.is_file():
        return ""
    text = head.read_text(errors="replace").strip()
    if text.startswith("ref: "):
        name = text.removeprefix("ref: ")
        packed, loose = path / ".git" / "packed-refs", path / ".git" / name
        lines = packed.read_text(errors="replace").splitlines() if packed.is_file() else []
        known = [line.split()[0] for line in lines if line.endswith(f" {name}")]
        text = loose.read_text(errors="replace").strip() if loose.is_file() else next(iter(known), "")
    return text if SHA.fullmatch(text) else ""


def on_the_cpu() -> None:
    """Make calls of a GPU do nothing in this process, so that code that is written for one runs without."""

    def stay(self: Any, *_: Any, **__: Any) -> Any:
        return self

    def copied(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        # A trained tensor that moves to a GPU gives a result that may be changed in place; the tensor itself may not.
        return self.clone() if self.is_leaf and self.requires_grad else self

    move: Any = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        here = ["cpu" if _is_gpu(value) else value for value in args]
        there = {key: "cpu" if _is_gpu(value) else value for key, value in options.items()}
        return move(self, *here, **there)

    for owner, name, instead in (
        (torch.Tensor, "cuda", copied),
        (torch.nn.Module, "cuda", stay),
        (torch.Tensor, "to", to),
    ):
        setattr(owner, name, instead)


def _is_gpu(value: Any) -> bool:
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")
