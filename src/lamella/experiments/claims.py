"""A run directory belongs to one configuration: who may begin or go on in it, and what is left of a refused start."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lamella.common.files import read_json
from lamella.learner.config.document import same_settings, to_toml, up_to_date
from lamella.learner.config.own_methods import method_digests

__all__ = ["check_claim", "removed_if_refused"]


@contextmanager
def removed_if_refused(made: Sequence[Path]) -> Iterator[None]:
    """Remove the folders that were made for a run, the innermost first, if it fails before anything was written."""
    try:
        yield
    except Exception:
        if made and [entry.name for entry in made[0].iterdir()] == [".lock"]:
            with suppress(OSError):  # no open file on Windows, and no folder that holds other files
                (made[0] / ".lock").unlink()
                for folder in made:
                    folder.rmdir()
        raise


def check_claim(out: Path, config: Mapping[str, Any], resume: bool) -> None:
    """Make sure that a run of `config` may begin or go on in `out`.

    Raises:
        FileExistsError, ValueError: as `lamella.experiments.run.run`.
    """
    path, wanted = out / "config.toml", tomllib.loads(to_toml(config))
    if path.exists():
        if not resume:
            raise FileExistsError(f"'{out}' holds a run already; pass --resume to continue it, or another --out")
        if not same_settings(_stored(path), wanted):
            raise ValueError(
                f"'{out}' holds a run of another configuration (see its config.toml); choose another --out"
            )
        _check_method_files(out, config)


def _check_method_files(out: Path, config: Mapping[str, Any]) -> None:
    """Refuse to go on when the file of the user's own method is not what the run was started with."""
    path, digests = out / "inputs.json", method_digests(config)
    before = read_json(path).get("method_files", {}) if path.exists() else digests
    if changed := [name for name, digest in digests.items() if before.get(name) != digest]:
        raise ValueError(
            f"the file of the method {changed[0]} has changed since '{out}' was started, so that run cannot go on; put "
            "the file back as it was, or choose another --out"
        )


def _stored(path: Path) -> dict[str, Any]:
    try:
        return up_to_date(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # no TOML
        return {}
