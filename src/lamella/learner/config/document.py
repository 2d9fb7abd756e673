"""Turns a TOML file and overrides into a checked dictionary, and a checked dictionary into objects.

The sections are [scenario] [backbone] [method] [augment] [fit] [run], and [federated] where several clients learn. The
parts of a method are tables within [method], such as [method.align]. So is the method that another one is built on,
[method.base]. The rooms below this one get plain arguments and never a configuration.
"""

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from lamella.backbones import Backbone, backbone_options, load_backbone
from lamella.backbones.encoder_places import is_path
from lamella.common.options import Option, arguments, check_table, completed, near_matches, options_of
from lamella.data.transform import Augmentation
from lamella.federated.federation import Federation
from lamella.learner.config.method_names import method_name, readout_names
from lamella.learner.config.method_tables import build_method, complete_method, switch_methods, with_unstored
from lamella.learner.config.overrides import changes_of, parse_override, put
from lamella.learner.config.own_methods import name_changes, name_in_table, plain_names
from lamella.learner.config.scenario_table import build_scenario, complete_scenario

__all__ = [
    "build_augmentation",
    "build_backbone",
    "build_federation",
    "build_method",
    "build_scenario",
    "complete",
    "describe_config",
    "load_config",
    "method_name",
    "read_document",
    "readout_names",
    "same_settings",
    "shipped_configs",
    "to_toml",
    "on_device",
    "up_to_date",
    "with_overrides",
]

SECTIONS = ("scenario", "backbone", "method", "augment", "fit", "federated", "run")
FIT = {
    "device": Option(str, "auto"),
    "precision": Option(Literal["float32", "bf16", "auto"], "float32"),
    "compile": Option(bool, False),
    "recompute": Option(bool, None),
    "like_sizes": Option(bool, None),
    "checkpoint_seconds": Option(float, 60.0),
    "measured": Option(str, None),  # added where "auto" was resolved; it is last, as in stored configurations
}
NOT_STATED = "not stated"
RUN = {
    "seed": Option(int, 0),
    "evaluate_on": Option(Literal["test", "validation"], "test"),
    "selection": Option(str, NOT_STATED),
    "dropped": Option(list[str], None),
    "overrides": Option(list[str], None),
    "measure_every": Option(int, None),
    "loggers": Option(list[Literal["csv", "tensorboard", "mlflow", "wandb"]], None),
    "max_tokens": Option(int, None),
    "stop": Option(list[str], None),
    "probe": Option(str, None),
}


def shipped_configs() -> dict[str, Path]:
    """Return the files of the configurations that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))}


def describe_config(path: Path) -> str:
    """Return the first line of a configuration file, which is a comment that describes it."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read, override, check and complete a configuration.

    If an override changes the method, the keys of the file that the new method does not know, and its parts, are left
    out; `run.dropped` lists them. If an override changes a value outside of [run], `run.selection` becomes "not
    stated", unless it is overridden too, and `run.overrides` lists the override; overrides.py says which settings of
    [fit] are exempt. If a method is a class in a Python file of the user, such as "my_file.py:EMALoRA", the file is
    run. A relative path starts at the current folder in an override, and at the folder of the TOML file in that file.

    Args:
        name_or_path: the name of a shipped configuration, or the path of a TOML file.
        overrides: overrides such as "method.rank=8". Values are TOML, and bare words are text. "method.rank=" sets the
            default, and "method.align=false" removes the part.

    Returns:
        A dictionary of plain tables with every default filled in, which can be written as TOML.

    Raises:
        FileNotFoundError: there is no such configuration.
        ValueError: the file is not TOML, a key or a name is unknown, or a value has the wrong type.
    """
    return with_overrides(read_document(name_or_path), overrides)


def with_overrides(document: dict[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the tables of a configuration with overrides, checked and completed as `load_config` does it.

    Args:
        document: the tables by section, as they are written in a file; they are changed.
        overrides: overrides such as "method.rank=8".

    Raises:
        ValueError: a key or a name is unknown, or a value has the wrong type.
    """
    changes = name_changes([parse_override(text, SECTIONS) for text in overrides], Path.cwd())
    _check_sections(document)
    document.setdefault("scenario", {})
    alone = deepcopy(document)
    switch_methods(document, dict(changes))
    for path, value in changes:
        put(document, path, value)
    if "method" in document:
        document["method"] = name_in_table(document["method"], Path.cwd())
    config = complete(document)
    run = config["run"]
    before, after = _file_alone(alone, run["seed"]), config
    if changed := changes_of(overrides, _by_full_name(before), _by_full_name(after)):
        if ("run", "selection") not in dict(changes):
            run["selection"] = NOT_STATED
        run["overrides"] = [*run.get("overrides", []), *changed]
    return config


def complete(document: Mapping[str, Any]) -> dict[str, Any]:
    """Check every section and fill in its defaults.

    Args:
        document: the sections by name. [scenario] may be absent, if there is no data set to split into tasks.

    Raises:
        ValueError: a key is unknown or missing, a name is unknown, or a value has the wrong type.
    """
    _check_sections(document)
    given: dict[str, Any] = {section: deepcopy(document.get(section, {})) for section in SECTIONS}
    run = completed("run", given["run"], RUN)
    if run["seed"] < 0:
        raise ValueError(f"run.seed = {run['seed']} should be a whole number of 0 or more")
    if len(set(loggers := run.get("loggers", []))) < len(loggers):
        raise ValueError(f"run.loggers = {loggers} names a logger twice; name each once")
    scenario = complete_scenario(given["scenario"], run) if "scenario" in document else {}
    config = {
        "scenario": scenario,
        "backbone": _complete_backbone(given["backbone"], run),
        "method": complete_method(given["method"], scenario),
        "augment": _complete_augment(given["augment"]),
        "fit": completed("fit", given["fit"], FIT),
        "federated": complete_federated(given["federated"]) if "federated" in document else {},
        "run": run,
    }
    return {section: table for section, table in config.items() if table}


def on_device(config: Mapping[str, Any], device: str | None) -> dict[str, Any]:
    """Return a complete configuration that computes on a device, which is no property of a model.

    Args:
        config: a complete configuration.
        device: the device; None for "auto".
    """
    return {**config, "fit": {**config["fit"], "device": device or "auto"}}


def up_to_date(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration, completed with the defaults of all options that were added later.

    Where the default of such an option is not what was computed before there was the option, the method lists the value
    in its class attribute `unstored`, and this value is filled in. The configuration is returned unchanged if an option
    is unknown, for example because a newer version stored it.
    """
    try:
        return complete({**stored, "method": with_unstored(stored.get("method", {}))})
    except ValueError:
        return dict(stored)


def same_settings(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether two configurations have the same settings, whatever overrides they were made with.

    Versions without `run.overrides` did not change `run.selection` when something was overridden. So if only `wanted`
    has such a list, `run.selection` is not compared.

    Args:
        stored: a stored configuration.
        wanted: the configuration to compare it with.
    """
    told = [config.get("run", {}) for config in (stored, wanted)]
    apart = {"overrides", "loggers"}  # who is told of a run does not change it
    if "overrides" in told[1] and "overrides" not in told[0]:
        apart.add("selection")
    kept = [{key: value for key, value in run.items() if key not in apart} for run in told]
    return {**stored, "run": kept[0]} == {**wanted, "run": kept[1]}


def to_toml(config: Mapping[str, Any]) -> str:
    """Return a configuration as TOML, which `load_config` reads back to the same."""
    import tomli_w

    return tomli_w.dumps(config)


def build_backbone(config: Mapping[str, Any]) -> Backbone:
    """Load the backbone of [backbone], with frozen weights."""
    table = config["backbone"]
    options = backbone_options(table)
    check_table("backbone", table, options)
    return load_backbone(**arguments("backbone", table, options))


def build_augmentation(config: Mapping[str, Any]) -> Augmentation | None:
    """Return the augmentation of [augment]; None if `enabled` is false."""
    if not config["augment"]["enabled"]:
        return None
    table = {k: v for k, v in config["augment"].items() if k != "enabled"}
    return Augmentation(**arguments("augment", table, options_of(Augmentation)))


def _complete_augment(table: Mapping[str, Any]) -> dict[str, Any]:
    """Check [augment] and fill in its defaults."""
    full = completed("augment", table, _augment_options(table))
    build_augmentation({"augment": full})
    return full


def build_federation(config: Mapping[str, Any]) -> Federation | None:
    """Return who takes part in learning, by [federated]; None if samples have one owner."""
    if "federated" not in config:
        return None
    return Federation(**arguments("federated", config["federated"], options_of(Federation)))


def complete_federated(table: Mapping[str, Any]) -> dict[str, Any]:
    """Check [federated] and fill in its defaults.

    Raises:
        ValueError: a key is unknown, or a value is refused.
    """
    full = completed("federated", table, options_of(Federation))
    build_federation({"federated": full})
    return full


def read_document(name_or_path: str | Path) -> dict[str, Any]:
    """Read the tables of a configuration as they are written, with the full names of methods in files.

    Args:
        name_or_path: the name of a shipped configuration, or the path of a TOML file.

    Raises:
        FileNotFoundError: there is no such configuration.
        ValueError: the file is not TOML.
    """
    shipped = shipped_configs()
    path = Path(name_or_path)
    if path.suffix != ".toml" and str(name_or_path) in shipped:
        path = shipped[str(name_or_path)]
    if not path.is_file():
        hint = near_matches(str(name_or_path), shipped)
        raise FileNotFoundError(f"no configuration '{name_or_path}': neither a file nor shipped; {hint}")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not a TOML file: {error}") from error
    if "method" in document:
        document["method"] = name_in_table(document["method"], path.absolute().parent)
    return document


def _file_alone(document: dict[str, Any], seed: int) -> dict[str, Any]:
    """Complete a file without overrides, for the same seed; return {} if that is not possible."""
    document["run"] = {"seed": seed}  # the rest of [run] may need an override, as evaluate_on = "validation" does
    try:
        return complete(document)
    except ValueError:
        return {}


def _by_full_name(config: dict[str, Any]) -> dict[str, Any]:
    """Return a complete configuration with its method's parts and base in its name, so that their changes count."""
    if not config:
        return {}
    name = " ".join([method_name(config), *plain_names(config)])  # plain names have the folders of own files
    return {**config, "method": {**config["method"], "name": name}}


def _check_sections(document: Mapping[str, Any]) -> None:
    for section, table in document.items():
        if section not in SECTIONS:
            raise ValueError(f"unknown section [{section}]; {near_matches(section, SECTIONS)}")
        if not isinstance(table, dict):
            raise ValueError(f"'{section}' should be a section, [{section}], not a value")


def _complete_backbone(table: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Complete [backbone]; random weights depend on the seed of the run, weights of a file do not."""
    if isinstance(name := table.get("name"), str) and is_path(name):
        table = {**table, "name": str(Path(name).expanduser().absolute())}
    drawn = {"seed": run["seed"]} if table.get("weights") == "random" else {}
    return completed("backbone", {**drawn, **table}, backbone_options(table))


def _augment_options(table: Mapping[str, Any]) -> dict[str, Option]:
    """Return the options of [augment], which is enabled by default if the table has any key."""
    return {"enabled": Option(bool, bool(table))} | options_of(Augmentation)
