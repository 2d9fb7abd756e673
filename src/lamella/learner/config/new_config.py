"""The configuration of a learner that is made without a file: a backbone, a method, and little else."""

from collections.abc import Mapping
from typing import Any

from lamella.backbones.from_folder import backbone_table
from lamella.learner.config.document import complete

__all__ = ["new_config"]


def new_config(
    *,
    backbone: str | Mapping[str, Any],
    method: str | Mapping[str, Any],
    align: bool | None = None,
    seed: int = 0,
    augment: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Complete, without a stream of tasks; arguments and errors are those of `Learner.create`."""
    table: dict[str, Any] = dict(method) if isinstance(method, Mapping) else {"name": method}
    if (align or (align is None and table["name"] == "inflora")) and "align" not in table:
        table["align"] = {}
    return complete({
        "backbone": _backbone_table(backbone),
        "method": table, "augment": dict(augment or {}), "fit": dict(fit or {}), "run": {"seed": seed},
    })  # fmt: skip


def _backbone_table(backbone: str | Mapping[str, Any]) -> dict[str, Any]:
    given = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    return backbone_table(given["name"]) | {key: value for key, value in given.items() if key != "name"}
