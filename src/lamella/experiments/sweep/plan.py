"""What a sweep runs: lists of values and named variants become trials, all checked before the first one starts.

A sweep file is a TOML file with these keys at its top; all but the first may be left out:

    config = "digits"                        # a shipped configuration, or a file relative to this one
    seeds = 3                                # seeds 0, 1 and 2 of everything
    changes = ["fit.precision=bf16", "method.rank=4,8"]
    [variants]                               # each with its own changes to the configuration
    inflora = []
    olora = ["method.name=olora+align", "method.lr=1e-3"]
    own = ["method.name=my_file.py:EMALoRA"] # a class of a Python file beside this one
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from lamella.common.options import Option, completed, near_matches
from lamella.experiments.claims import check_claim
from lamella.learner.config.document import load_config
from lamella.learner.config.own_methods import PLACES, name_in_full
from lamella.learner.config.precision import as_in_runs

__all__ = ["Sweep", "Trial", "check_folders", "finished", "read_sweep", "values_of"]

MOST = 10_000
"""Trials of one sweep; more are taken for a mistake."""
LONGEST = 120
"""Letters in the name of a folder, beyond which it is cut."""
SEED = "run.seed"
TOLD = ("selection", "dropped", "overrides")
"""Keys of [run] that say how a configuration came about, and change nothing that is computed."""
FILE = {
    "config": Option(str),
    "seeds": Option(int, None),
    "changes": Option(list[str], None),
    "variants": Option(dict, None),
}


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        group: what its run directory is called without the seed, such as "method.rank=8"; empty where a sweep has
            nothing but seeds.
        changes: what makes its configuration out of that of the sweep, such as ("method.rank=8", "run.seed=0").
        config: the complete configuration.
    """

    group: str
    changes: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its run directory within that of the sweep."""
        seed = f"seed-{self.config['run']['seed']}"
        return f"{self.group}/{seed}" if self.group else seed


@dataclass(frozen=True)
class Sweep:
    """All combinations of lists of values, for each variant and each seed.

    Attributes:
        config: the name of a shipped configuration, or a TOML file.
        changes: as for `lamella run`, but that a value may be a list: "method.rank=4,8". The last one of a key counts.
        variants: further changes by the name of a variant; they count more than `changes`.
        overrides: changes that count more than those of a variant.
        seeds: how many seeds, from 0 on, each combination is run with; where left out, the configuration's own one.
    """

    config: str | Path
    changes: Sequence[str] = ()
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    seeds: int | None = None

    def only(self, names: Iterable[str]) -> "Sweep":
        """The sweep with these of its variants alone.

        Raises:
            ValueError: one of the names is no variant.
        """
        for name in (names := list(names)):
            if name not in self.variants:
                hint = near_matches(name, self.variants) if self.variants else "this sweep has none"
                raise ValueError(f"no variant '{name}'; {hint}")
        return replace(self, variants={name: self.variants[name] for name in names})

    def trials(self) -> list[Trial]:
        """Every run, in the order of the variants, the lists and the seeds.

        Raises:
            ValueError: a configuration is wrong, two runs are the same, or there are too many.
            FileNotFoundError: there is no such configuration.
        """
        variants = self.variants or {"": ()}
        axes = {name: self._axes(changes) for name, changes in variants.items()}
        count = sum(prod(map(len, own.values())) for own in axes.values())
        if count > MOST:
            raise ValueError(f"the sweep has {count:,} runs; at most {MOST:,} are taken, so give shorter lists")
        trials = [trial for name, own in axes.items() for trial in self._of_variant(name, own)]
        _check_different(trials)
        return trials

    def _axes(self, variant: Sequence[str]) -> dict[str, list[str]]:
        """For each key, as in "method.rank", its changes: ["method.rank=4", "method.rank=8"]."""
        axes: dict[str, list[str]] = {}
        for text in (*self.changes, *variant, *self.overrides):
            key, values = values_of(text)
            axes.pop(key, None)  # a later change counts, and in its own place: parts come before their settings
            axes[key] = [f"{key}={value}" for value in values]
        if self.seeds is not None:
            if SEED in axes:
                raise ValueError(f"'{SEED}' and a number of seeds are both given; leave one of them out")
            axes[SEED] = [f"{SEED}={seed}" for seed in range(self.seeds)]
        return axes

    def _of_variant(self, name: str, axes: Mapping[str, Sequence[str]]) -> list[Trial]:
        lists = {key for key, values in axes.items() if len(values) > 1 and key != SEED}
        trials: list[Trial] = []
        for changes in product(*axes.values()):
            point = ",".join(text for key, text in zip(axes, changes, strict=True) if key in lists)
            group = "/".join(_folder_name(part) for part in (name, point) if part)
            try:
                trials.append(Trial(group, changes, load_config(self.config, changes)))
            except ValueError as error:
                raise ValueError(f"{group}: {error}" if group else str(error)) from error
        return trials


def values_of(text: str) -> tuple[str, list[str]]:
    """The key of a change and its values; commas within brackets and quotes belong to a value.

    >>> values_of("method.rank=4,8")
    ('method.rank', ['4', '8'])
    >>> values_of("augment.scale=[0.5, 1.0],[0.8, 1.0]")
    ('augment.scale', ['[0.5, 1.0]', '[0.8, 1.0]'])
    >>> values_of("method.rank=")
    ('method.rank', [''])

    Raises:
        ValueError: one of several values is empty, or a value is there twice.
    """
    key, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"'{text}' is not a change; write section.key=value or section.key=value,value")
    values = _split(rest)
    if len(values) > 1 and not all(values):
        raise ValueError(f"'{text}' has an empty value in its list; leave out the comma, or write the value")
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise ValueError(f"'{text}' has the value '{twice[0]}' twice; write it once")
    return key.strip(), values


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += 0 if quote else (letter in "[{(") - (letter in "]})")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def read_sweep(name_or_path: str | Path) -> Sweep:
    """The sweep of a sweep file, or of a configuration alone, which has neither lists nor variants.

    Args:
        name_or_path: a sweep file, a configuration file, or the name of a shipped configuration.

    Raises:
        ValueError: it is a sweep file with an unknown key or a value of the wrong type.
    """
    path = Path(name_or_path)
    document = _document(path) if path.suffix == ".toml" and path.is_file() else {}
    if not FILE.keys() & document.keys():
        return Sweep(name_or_path)
    try:
        table = completed("sweep", document, FILE)
        variants = {name: _texts(name, changes) for name, changes in table.get("variants", {}).items()}
        if (seeds := table.get("seeds")) is not None and seeds < 1:
            raise ValueError(f"seeds = {seeds} should be 1 or more")
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
    beside = path.parent / table["config"]
    config = beside if beside.suffix == ".toml" else table["config"]
    here = path.absolute().parent
    changes = [_named_from(text, here) for text in table.get("changes", ())]
    variants = {name: [_named_from(text, here) for text in own] for name, own in variants.items()}
    return Sweep(config, changes=changes, variants=variants, seeds=seeds)


def _named_from(text: str, folder: Path) -> str:
    """A change in which methods of the user's own files are looked for from the folder of the sweep file."""
    key, values = values_of(text)
    if tuple(key.split(".")) not in PLACES:
        return text
    return f"{key}={','.join(name_in_full(value, folder) for value in values)}"


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not a TOML file: {error}") from error


def _texts(name: str, changes: Any) -> list[str]:
    if not isinstance(changes, list) or not all(isinstance(text, str) for text in changes):
        raise ValueError(f'variants.{name} should be a list of changes, such as ["method.rank=8"]')
    if _folder_name(name) != name:
        raise ValueError(f"variant '{name}' should be the name of a folder: letters, digits and . _ - + = ( ) alone")
    return changes


def _folder_name(text: str) -> str:
    """The text as a folder's name; what cannot stand in one is replaced, and a digest keeps the names apart."""
    plain = re.sub(r"[^\w.,+=()\[\]-]|^[.-]", "_", text)
    if plain == text and len(text) <= LONGEST:
        return text
    return f"{plain[: LONGEST - 9]}-{sha256(text.encode()).hexdigest()[:8]}"


def _check_different(trials: Sequence[Trial]) -> None:
    """Refuse two runs of the same settings: one of them is not what was meant."""
    seen: dict[str, Trial] = {}
    for trial in trials:
        run = {key: value for key, value in trial.config["run"].items() if key not in TOLD}
        other = seen.setdefault(json.dumps({**trial.config, "run": run}), trial)
        if other is not trial:
            raise ValueError(f"'{other.name}' and '{trial.name}' would be the same run; leave one of them out")


def check_folders(trials: Sequence[Trial], out: Path) -> None:
    """Make sure that no trial's run directory holds a run of other settings.

    Raises:
        ValueError: one does, or is a symbolic link.
    """
    for trial in trials:
        check_claim(out / trial.name, as_in_runs(trial.config, [out / trial.name]), resume=True)


def finished(trial: Trial, out: Path) -> bool:
    """Whether its results are there."""
    return (out / trial.name / "results.json").is_file()
