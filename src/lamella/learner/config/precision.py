"""`fit.precision = "auto"`: the faster precision for a backbone on this machine, measured once and then kept.

Results depend on the precision, so nothing is learned with "auto". When a model is made, "float32" or "bf16" takes its
place, and `fit.measured` says why. Both are stored with the configuration. Later calls with "auto" use the stored
precision.
"""

import tomllib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lamella.backbones import Backbone
from lamella.learner.config.document import to_toml
from lamella.training import processes
from lamella.training.measured_precision import faster_precision
from lamella.training.precision import resolve_device, slow_in_bf16

__all__ = ["AUTO", "SlowPrecision", "as_chosen", "as_in_runs", "choose", "measured_on", "precision_line"]

AUTO = "auto"
SLOW = (
    "this processor has no instructions for bf16, so that fit.precision = bf16 takes many times as long; "
    "fit.precision = auto measures both, and would take float32 here"
)


class SlowPrecision(UserWarning):
    """The precision that was asked for is far slower on this machine than another one."""


def choose(config: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """Return a configuration in which the precision "auto" is replaced by the faster one; others are not changed.

    Args:
        config: a complete configuration.
        backbone: the backbone of the configuration, before anything is learned; it is not changed.

    Raises:
        ValueError: the device is not available.
    """
    fit = config["fit"]
    if fit["precision"] != AUTO:
        if fit["precision"] == "bf16" and "measured" not in fit and slow_in_bf16(resolve_device(fit["device"])):
            warnings.warn(SLOW, SlowPrecision, stacklevel=2)
        return dict(config)
    method = config["method"]
    batch = method.get("batch_size") or method.get("base", {}).get("batch_size")
    device = resolve_device(fit["device"])
    precision, measured = processes.from_first(lambda: faster_precision(backbone, device, batch))
    return {**config, "fit": {**fit, "precision": precision, "measured": measured}}


def as_chosen(config: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the precision of a stored one, if it has "auto" or the same precision.

    >>> stored = {"fit": {"precision": "bf16", "measured": "a step in bf16 took 0.52 of float32's time"}}
    >>> as_chosen({"fit": {"precision": "auto"}}, stored) == stored
    True
    """
    fit, there = config["fit"], stored.get("fit", {})
    if "measured" not in there or fit["precision"] not in (AUTO, there.get("precision")):
        return dict(config)
    return {**config, "fit": {**fit, "precision": there["precision"], "measured": there["measured"]}}


def as_in_runs(config: Mapping[str, Any], runs: Iterable[Path]) -> dict[str, Any]:
    """Return a configuration with the precision that was chosen in a run on the same backbone and device.

    Args:
        config: a complete configuration.
        runs: run directories; the first one with such a choice counts.
    """
    for path in (run / "config.toml" for run in runs):
        if not path.is_file():
            continue
        try:
            stored = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # not TOML, which an attempt to resume this run reports
            continue
        found = as_chosen(config, stored)
        if found != config and measured_on(stored) == measured_on(config):
            return found
    return dict(config)


def measured_on(config: Mapping[str, Any]) -> str:
    """Return the settings that the faster precision depends on; configurations with equal ones share a choice."""
    backbone = {key: value for key, value in config.get("backbone", {}).items() if key != "seed"}
    return to_toml({"device": config["fit"]["device"], "backbone": backbone})


def precision_line(config: Mapping[str, Any]) -> str:
    """Return a line that says which precision was chosen, and why.

    >>> precision_line({"fit": {"precision": "bf16", "measured": "a step in bf16 took 0.52 of float32's time"}})
    "precision: bf16 (measured: a step in bf16 took 0.52 of float32's time)"
    """
    return f"precision: {config['fit']['precision']} (measured: {config['fit']['measured']})"
