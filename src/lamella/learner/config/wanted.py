"""The settings that a caller wants for a model."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamella.backbones.load import noun_of
from lamella.common.options import UnknownKey
from lamella.learner.config.document import complete
from lamella.learner.config.method_names import alias_settings, method_name, parse_name, with_parts
from lamella.learner.config.method_tables import check_method, switch_methods
from lamella.learner.config.new_config import NOUNS, new_config, same_method, start_tables
from lamella.learner.config.overrides import parse_override, put
from lamella.learner.config.own_methods import PLACES, name_in_full, plain_names
from lamella.learner.config.precision import AUTO
from lamella.learner.config.registry import find, is_own

__all__ = ["Wanted"]

DEVICE = ("fit", "device")
SECTIONS = ("backbone", "method", "augment", "fit")
"""The sections that the settings of a model may be in, which has no [scenario]."""


@dataclass(frozen=True)
class Wanted:
    """The settings for a new model. An existing model must have been made with the same ones.

    Attributes:
        backbone: the name of the backbone, as for `Learner.create`; None if it was left out.
        method: the name of the method with its parts, such as "inflora+align"; None if it was left out. Without `start`
            it has its own defaults, with `start` the settings of that configuration as far as it knows them.
        seed: the seed of every random draw; None if it was left out.
        settings: further settings, such as "method.epochs=5".
        start: the configuration that has all other settings, by its name or its file; see `start_tables`. Its
            [scenario] and its [run] do not count.
    """

    backbone: str | None = None
    method: str | None = None
    seed: int | None = None
    settings: tuple[str, ...] = ()
    start: str | Path | None = None

    def with_files_named(self) -> "Wanted":
        """Run the Python files of the user in the names, and return the same with their absolute paths.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file cannot be run, or has no such method.
        """
        here = Path.cwd()
        method = None if self.method is None else name_in_full(self.method, here)
        return replace(self, method=method, settings=tuple(_with_file_named(each, here) for each in self.settings))

    @property
    def says_what_for(self) -> bool:
        """Whether the settings alone say which samples a new model is for, by its backbone or its configuration."""
        # A model of transformers may be one of texts or one of answers, which its first data say.
        return self.start is not None or (self.backbone is not None and noun_of(self.backbone) != "text")

    def check(self) -> None:
        """Raise ValueError if the settings suit a new model of no kind of samples."""
        faults: list[ValueError] = []
        for noun in NOUNS:
            try:
                check_method(self.config(noun))
            except ValueError as error:
                faults.append(error)
        if len(faults) == len(NOUNS):
            # Each kind starts with another method, whose option a misspelt key may be: it says what was meant.
            raise next((f for f in faults if isinstance(f, UnknownKey) and f.misspelt), faults[0])

    def config(self, noun: str = "image") -> dict[str, Any]:
        """Return the complete configuration of a new model.

        Args:
            noun: what it will learn from, "image", "text" or "answer". A setting of backbone.output says it, too.

        Raises:
            ValueError: a name or a setting is unknown.
        """
        changes = [parse_override(setting, SECTIONS) for setting in self.settings]
        tables = start_tables(self.start, self.backbone, "answer" if ("backbone", "output") in dict(changes) else noun)
        if self.method is not None:
            changes.insert(0, (("method", "name"), self.method))
        named = dict(changes).get(("method", "name"))
        if named is not None and self.start is None and not same_method(str(named), tables):
            tables |= {"method": {"name": named}, "augment": {}}  # a name alone means the method's own defaults
        else:
            switch_methods(tables, dict(changes))
        for change in changes:
            put(tables, *change)
        return new_config(
            backbone=tables["backbone"],
            method=tables["method"],
            augment=tables["augment"],
            fit=tables["fit"],
            seed=self.seed or 0,
        )

    @property
    def device(self) -> str | None:
        """The device that `settings` names; None if they name none. It is no property of a model."""
        named = dict(parse_override(setting, SECTIONS) for setting in self.settings).get(DEVICE)
        return None if named is None else str(named)

    def differences(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Describe in words each setting in which an existing model differs.

        Args:
            config: the complete configuration of the existing model.

        Raises:
            ValueError: a setting is unknown to such a model, for example because it is misspelt.
        """
        if self.start is not None:
            tables = self.config()
            for section in ("backbone", "method", "augment"):
                if tables[section] != config[section]:
                    yield f"[{section}] is not that of the configuration '{self.start}'"
        asked: dict[tuple[str, ...], Any] = {("backbone", "name"): self.backbone, ("run", "seed"): self.seed}
        asked |= dict(parse_override(setting, SECTIONS) for setting in self.settings)
        asked.pop(DEVICE, None)
        if isinstance(named := asked.get(("method", "name"), self.method), str):
            meant = alias_settings(parse_name(named).method, {})
            asked |= {("method", key): value for key, value in meant.items() if key != "name"}
        yield from _other_method(config, asked.pop(("method", "name"), self.method), asked)
        if asked.get(("fit", "precision")) == AUTO and "measured" in config["fit"]:
            asked.pop(("fit", "precision"))  # it was replaced when the model was made
        for path, value in asked.items():
            found: Any = config
            for key in path:
                found = found.get(key) if isinstance(found, dict) else None
            there = isinstance(found, dict) if value is True else found is None if value is False else False
            if not there and value not in (None, found):
                if found is None:
                    _check_known(config, path, value)
                yield f"{'.'.join(path)} is {found!r}, not {value!r}"


def _with_file_named(setting: str, folder: Path) -> str:
    path, value = parse_override(setting, SECTIONS)
    return f"{'.'.join(path)}={name_in_full(value, folder)}" if path in PLACES and isinstance(value, str) else setting


def _check_known(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Raise ValueError if a setting that a model lacks is none that it could have."""
    tables = deepcopy(dict(config))
    put(tables, path, value)
    complete(tables)


def _other_method(config: Mapping[str, Any], name: str | None, asked: Mapping[tuple[str, ...], Any]) -> Iterator[str]:
    """Describe the method if it differs; settings such as method.align=true add a part to the wanted name."""
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
    """Return whether two plain names mean the same method; its file may have moved."""
    own = isinstance(name, str) and is_own(name) and is_own(other)
    return name == other or (own and find(name) is find(other))
