"""What a caller wants a model to be made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamella.learner.config.method_tables import method_name, with_parts
from lamella.learner.config.new_config import BACKBONE, METHOD, new_config
from lamella.learner.config.overrides import parse_override, put
from lamella.learner.config.own_methods import PLACES, name_in_full, plain_names
from lamella.learner.config.precision import AUTO
from lamella.methods.registry import find, is_own

__all__ = ["Wanted"]

SECTIONS = ("backbone", "method", "augment", "fit")
"""Of a configuration that has no stream of tasks; the settings of a new model are in them."""


@dataclass(frozen=True)
class Wanted:
    """What a new model is made of; an existing one must have been made of the same.

    Attributes:
        backbone: a name as for `Learner.create`; None where it was left out.
        method: a name with its parts, such as "inflora+align"; None where it was left out.
        seed: of every draw; None where it was left out.
        settings: such as "method.epochs=5".
    """

    backbone: str | None = None
    method: str | None = None
    seed: int | None = None
    settings: tuple[str, ...] = ()

    def with_files_named(self) -> "Wanted":
        """The same with the absolute paths of the user's own files, which are run and may be used from now on.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file cannot be run, or has no such method.
        """
        here = Path.cwd()
        method = None if self.method is None else name_in_full(self.method, here)
        return replace(self, method=method, settings=tuple(_with_file_named(each, here) for each in self.settings))

    def config(self) -> dict[str, Any]:
        """The complete configuration of a new model.

        Raises:
            ValueError: a name or a setting is unknown.
        """
        changes = [parse_override(setting, SECTIONS) for setting in self.settings]
        # Nobody wrote the name that stands by default, so method.align=false may take its part away.
        default = {} if ("method", "name") in dict(changes) else with_parts({"name": METHOD})
        tables: dict[str, Any] = {
            "backbone": {"name": self.backbone or BACKBONE},
            "method": {"name": self.method} if self.method else default,
            "augment": {},
            "fit": {},
        }
        for change in changes:
            put(tables, *change)
        return new_config(**tables, seed=self.seed or 0)

    def differences(self, config: Mapping[str, Any]) -> Iterator[str]:
        """What is wanted and not so in the configuration of an existing model, in words."""
        asked: dict[tuple[str, ...], Any] = {("backbone", "name"): self.backbone, ("run", "seed"): self.seed}
        asked |= dict(parse_override(setting, SECTIONS) for setting in self.settings)
        yield from _other_method(config, asked.pop(("method", "name"), self.method), asked)
        if asked.get(("fit", "precision")) == AUTO and "measured" in config["fit"]:
            asked.pop(("fit", "precision"))  # it was answered when the model was made
        for path, value in asked.items():
            found: Any = config
            for key in path:
                found = found.get(key) if isinstance(found, dict) else None
            there = isinstance(found, dict) if value is True else found is None if value is False else False
            if not there and value not in (None, found):
                yield f"{'.'.join(path)} is {found!r}, not {value!r}"


def _with_file_named(setting: str, folder: Path) -> str:
    path, value = parse_override(setting, SECTIONS)
    return f"{'.'.join(path)}={name_in_full(value, folder)}" if path in PLACES and isinstance(value, str) else setting


def _other_method(config: Mapping[str, Any], name: str | None, asked: Mapping[tuple[str, ...], Any]) -> Iterator[str]:
    """The method where it is asked for by another name; with a setting such as method.align=true, a part counts too."""
    if name is None:
        return
    tables: dict[str, Any] = {"method": {"name": name}}
    for path, value in asked.items():
        if path[0] == "method":
            put(tables, path, value)
    own = config["method"]
    table = {key: value for key, value in with_parts(tables["method"]).items() if value is not False}
    base = table.pop("base", {})
    if _same(table["name"], own["name"]):
        table["name"] = own["name"]
        base = own.get("base", {}) | base  # a base that is not named may be any
    if "base" in own and _same(base.get("name"), own["base"]["name"]):
        base["name"] = own["base"]["name"]
    wanted = {"method": table | ({"base": base} if "name" in base else {})}
    if (method_name(wanted), plain_names(wanted)) != (method_name(config), plain_names(config)):
        alike = method_name(wanted) == method_name(config)  # but for the folders of files
        yield f"method.name is {method_name(config)!r}, not {name if alike else method_name(wanted)!r}"


def _same(name: Any, other: str) -> bool:
    """Whether two plain names are of one method; the file of a method may have moved."""
    own = isinstance(name, str) and is_own(name) and is_own(other)
    return name == other or (own and find(name) is find(other))
