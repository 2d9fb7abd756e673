"""Configuration: a TOML file and overrides in, a checked plain dictionary out, and the objects it describes.

Sections are [scenario] [backbone] [method] [augment] [fit] [run]; parts of a method are tables within it, such as
[method.align], and so is the method that another one learns on top of, [method.base]. Nothing below this layer sees a
configuration: builders pass plain arguments on.
"""

import inspect
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from lamella.backbones import Backbone, load_backbone
from lamella.compose import PARTS
from lamella.data.scenario import Scenario, class_incremental, domain_incremental, task_incremental
from lamella.data.transform import Augmentation
from lamella.methods import METHODS, WHOLE_STREAM, Method
from lamella.options import Option, arguments, check_table, near_matches, options_of, with_defaults
from lamella.overrides import parse_override, put

__all__ = [
    "build_augmentation", "build_backbone", "build_method", "build_scenario", "complete", "describe_config",
    "load_config", "method_name", "readout_names", "shipped_configs", "to_toml",
]  # fmt: skip

SECTIONS = ("scenario", "backbone", "method", "augment", "fit", "run")
SCENARIOS: dict[str, Callable[..., Scenario]] = {
    "class-incremental": class_incremental,
    "domain-incremental": domain_incremental,
    "task-incremental": task_incremental,
}
FIT = {
    "device": Option(str, "auto"),
    "precision": Option(Literal["float32", "bf16"], "float32"),
    "checkpoint_seconds": Option(float, 60.0),
}
RUN = {
    "seed": Option(int, 0),
    "evaluate_on": Option(Literal["test", "validation"], "test"),
    "selection": Option(str, "not stated"),
    "dropped": Option(list[str], None),
}


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.toml"))}


def describe_config(path: Path) -> str:
    """The first line of a configuration's header."""
    return path.read_text().partition("\n")[0].removeprefix("#").strip()


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read, override, check and complete a configuration.

    Args:
        name_or_path: a shipped configuration's name, or a TOML file.
        overrides: such as "method.rank=8"; values are TOML, bare words are text, "method.rank=" goes back to the
            default and "method.align=false" takes the part away. With another "method.name" the file's keys that the
            new method does not know, and its parts, are left out; `run.dropped` lists them.

    Returns:
        A dictionary of plain tables with every default filled in, which TOML can write.

    Raises:
        FileNotFoundError: no such configuration.
        ValueError: not TOML, an unknown key or name, or a value of the wrong type.
    """
    document = _read(name_or_path)
    changes = [parse_override(text, SECTIONS) for text in overrides]
    _check_sections(document)
    given = dict(changes)
    _switch_method(document, "method", document.setdefault("method", {}), given.get(("method", "name")))
    base = document["method"].get("base")
    if isinstance(base, dict):
        _switch_method(document, "method.base", base, given.get(("method", "base", "name")))
    for path, value in changes:
        put(document, path, value)
    document.setdefault("scenario", {})
    return complete(document)


def complete(document: Mapping[str, Any]) -> dict[str, Any]:
    """Check every section and fill in its defaults; [scenario] may be absent, where there is no stream to cut.

    Raises:
        ValueError: an unknown or missing key, an unknown name, or a value of the wrong type.
    """
    _check_sections(document)
    given: dict[str, Any] = {section: deepcopy(document.get(section, {})) for section in SECTIONS}
    run = _complete("run", given["run"], RUN)
    if run["seed"] < 0:
        raise ValueError(f"run.seed = {run['seed']} should be a whole number of 0 or more")
    scenario = _complete_scenario(given["scenario"], run) if "scenario" in document else {}
    config = {
        "scenario": scenario,
        "backbone": _complete_backbone(given["backbone"], run),
        "method": _complete_method(given["method"], scenario),
        "augment": _complete("augment", given["augment"], _augment_options(given["augment"])),
        "fit": _complete("fit", given["fit"], FIT),
        "run": run,
    }
    return {section: table for section, table in config.items() if table}


def to_toml(config: Mapping[str, Any]) -> str:
    """The text of a configuration, which `load_config` reads back to the same."""
    import tomli_w

    return tomli_w.dumps(config)


def method_name(config: Mapping[str, Any]) -> str:
    """The method with its parts.

    >>> method_name({"method": {"name": "inflora", "rank": 10, "align": {}}})
    'inflora+align'
    >>> method_name({"method": {"name": "dlc", "base": {"name": "wa"}}})
    'dlc(wa)'
    """
    table = config["method"]
    return "+".join([_plain_name(table), *(part for part in table if part in PARTS)])


def readout_names(config: Mapping[str, Any]) -> list[str]:
    """The method, and what is left when its parts are taken off one by one, the last first, and then its base.

    >>> readout_names({"method": {"name": "inflora", "calibrate": {}, "align": {}}})
    ['inflora+calibrate+align', 'inflora+calibrate', 'inflora']
    >>> readout_names({"method": {"name": "dlc", "base": {"name": "wa"}}})
    ['dlc(wa)', 'wa']
    """
    table = config["method"]
    parts = [part for part in table if part in PARTS]
    carried = ["+".join([_plain_name(table), *parts[:n]]) for n in range(len(parts), -1, -1)]
    return carried + ([table["base"]["name"]] if "base" in table else [])


def _plain_name(table: Mapping[str, Any]) -> str:
    return f"{table['name']}({table['base']['name']})" if "base" in table else table["name"]


def build_scenario(config: Mapping[str, Any]) -> Scenario:
    """Load the data set of [scenario] and cut it into tasks."""
    from lamella.data.sources import load_source

    table, kind = config["scenario"], config["scenario"]["kind"]
    options = options_of(SCENARIOS[kind])
    cut = arguments("scenario", {k: v for k, v in table.items() if k in options}, options)
    rest = {k: v for k, v in table.items() if k not in options and k not in ("source", "kind")}
    loading = arguments("scenario", rest, _source_options(table["source"]))
    return SCENARIOS[kind](load_source(table["source"], **loading), **cut)


def build_backbone(config: Mapping[str, Any]) -> Backbone:
    """The frozen backbone of [backbone]."""
    return load_backbone(**arguments("backbone", config["backbone"], _backbone_options()))


def build_method(config: Mapping[str, Any], backbone: Backbone) -> Method:
    """The method of [method] on this backbone, on its base if it has one, carried by its parts in their order."""
    table, seed = config["method"], config["run"]["seed"]
    base = {"base": _build_plain("method.base", table["base"], backbone, seed)} if "base" in table else {}
    method = _build_plain("method", table, backbone, seed, **base)
    for part in (key for key in table if key in PARTS):
        method = PARTS[part](method, seed=seed, **arguments(f"method.{part}", table[part], _keywords(PARTS[part])))
    return method


def _build_plain(where: str, table: Mapping[str, Any], backbone: Backbone, seed: int, **base: Method) -> Any:
    """One method without its parts."""
    build = METHODS[table["name"]]
    own = {key: value for key, value in table.items() if key not in ("name", "base", *PARTS)}
    return build(backbone, **base, seed=seed, **arguments(where, own, _keywords(build)))


def build_augmentation(config: Mapping[str, Any]) -> Augmentation | None:
    """What happens to training images, or None where [augment] is absent or switched off."""
    if not config["augment"]["enabled"]:
        return None
    table = {k: v for k, v in config["augment"].items() if k != "enabled"}
    return Augmentation(**arguments("augment", table, options_of(Augmentation)))


def _read(name_or_path: str | Path) -> dict[str, Any]:
    shipped = shipped_configs()
    path = Path(name_or_path)
    if path.suffix != ".toml" and str(name_or_path) in shipped:
        path = shipped[str(name_or_path)]
    if not path.is_file():
        hint = near_matches(str(name_or_path), shipped)
        raise FileNotFoundError(f"no configuration '{name_or_path}': neither a file nor shipped; {hint}")
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not a TOML file: {error}") from error


def _check_sections(document: Mapping[str, Any]) -> None:
    for section, table in document.items():
        if section not in SECTIONS:
            raise ValueError(f"unknown section [{section}]; {near_matches(section, SECTIONS)}")
        if not isinstance(table, dict):
            raise ValueError(f"'{section}' should be a section, [{section}], not a value")


def _switch_method(document: dict[str, Any], where: str, table: dict[str, Any], name: Any) -> None:
    """Leave out of a method's table what the file says of its own method where the command line names another one."""
    if name is None or name == table.get("name"):
        return
    known = {"name"} | _keywords(_method(name)).keys() | ({"base"} if _takes_base(name) else set())
    dropped = [key for key in table if key not in known]
    for key in dropped:
        del table[key]
    if dropped:
        document.setdefault("run", {}).setdefault("dropped", []).extend(f"{where}.{key}" for key in dropped)


def _complete(where: str, table: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    check_table(where, table, options)
    return with_defaults(table, options)


def _complete_backbone(table: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Random weights are another draw for each seed of the run; weights of a file have no use for it."""
    drawn = {"seed": run["seed"]} if table.get("weights") == "random" else {}
    return _complete("backbone", {**drawn, **table}, _backbone_options())


def _complete_scenario(table: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    kind = table.get("kind", "class-incremental")
    if kind not in SCENARIOS:
        raise ValueError(f"unknown scenario.kind {kind!r}; {near_matches(str(kind), SCENARIOS)}")
    options = {"source": Option(str), "kind": Option(str, "class-incremental")}
    options |= _source_options(str(table.get("source"))) | options_of(SCENARIOS[kind])
    for key in table.keys() - options.keys():
        if kinds := [other for other, build in SCENARIOS.items() if key in options_of(build)]:
            raise ValueError(
                f"'scenario.{key}' belongs to the kinds {', '.join(kinds)}, not to {kind}; take it away with "
                f"scenario.{key}="
            )
    done = _complete("scenario", {"seed": run["seed"], **table}, options)
    if run["evaluate_on"] == "validation" and not done["validation"]:
        raise ValueError(
            "run.evaluate_on = 'validation' needs a validation part; set scenario.validation to a share such as 0.2"
        )
    return done


def _complete_method(table: dict[str, Any], scenario: Mapping[str, Any]) -> dict[str, Any]:
    resolved = _complete_plain("method", table, scenario, METHODS)
    if _takes_base(resolved["name"]):
        resolved["base"] = _complete_plain("method.base", resolved["base"], scenario, _bases())
    for part in (key for key in table if key in PARTS and table[key] is not False):
        inner = {} if table[part] is True else table[part]
        check_table("method", {part: inner}, {part: Option(dict)})
        resolved[part] = _complete(f"method.{part}", inner, _keywords(PARTS[part]))
    return resolved


def _complete_plain(
    where: str, table: Mapping[str, Any], scenario: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
    """A method's own table without its parts, which only the outermost one may have."""
    if "name" not in table:
        raise ValueError(f"[{where}] lacks 'name'; set {where}.name to one of {', '.join(names)}")
    if table["name"] in METHODS and table["name"] not in names:
        raise ValueError(f"{where}.name = '{table['name']}' cannot be a base; {near_matches(table['name'], names)}")
    options = _keywords(_method(table["name"]))
    outermost = where == "method"
    own = {key: value for key, value in table.items() if not (outermost and key in PARTS)}
    if "horizon" in options and own.get("horizon") == "auto":
        own["horizon"] = _count_tasks(scenario)
    tables = {part: Option(dict, None) for part in PARTS} if outermost else {}
    if _takes_base(table["name"]):
        tables["base"] = Option(dict)
        if "base" not in own:
            raise ValueError(
                f"[{where}] lacks the method that '{table['name']}' learns on; set {where}.base.name to one of "
                + ", ".join(_bases())
            )
    return _complete(where, own, {"name": Option(str)} | options | tables)


def _takes_base(name: str) -> bool:
    """Whether this method learns on top of another one, which [method.base] names."""
    return "base" in inspect.signature(METHODS[name]).parameters


def _bases() -> list[str]:
    return [name for name in METHODS if name not in WHOLE_STREAM and not _takes_base(name)]


def _count_tasks(scenario: Mapping[str, Any]) -> int:
    if "sizes" in scenario:
        return len(scenario["sizes"])
    if "tasks" in scenario:
        return scenario["tasks"]
    if scenario.get("kind") == "domain-incremental":
        if "domains" in scenario:
            return len(scenario["domains"])
        raise ValueError("method.horizon = 'auto' needs the number of domains; set method.horizon to a number")
    raise ValueError(
        "method.horizon = 'auto' needs the number of tasks; set scenario.tasks, or method.horizon to a number"
    )


def _method(name: Any) -> Callable[..., Any]:
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; {near_matches(str(name), METHODS)}")
    return METHODS[name]


def _keywords(build: Callable[..., Any]) -> dict[str, Option]:
    """The hyper-parameters of a method or part; its seed is the run's."""
    return options_of(build, without={"seed"})


def _backbone_options() -> dict[str, Option]:
    return {"name": Option(str)} | options_of(load_backbone)


def _augment_options(table: Mapping[str, Any]) -> dict[str, Option]:
    """A table that says anything is meant to act."""
    return {"enabled": Option(bool, bool(table))} | options_of(Augmentation)


def _source_options(source: str) -> dict[str, Option]:
    """What loaders take, without defaults: `load_source` knows which of it this one takes."""
    from lamella.data.folders import load_folder
    from lamella.data.hub import load_hub
    from lamella.data.sources import HUB, load_source

    options = options_of(load_hub if source.startswith(HUB) else load_folder, without={"name", "renamed"})
    options |= options_of(load_source) | {"domains": Option(list[str])}
    return {name: Option(option.annotation, None) for name, option in options.items()}
