"""What a run of several clients writes down: messages, who was missing, and what privacy the noise gives."""

from collections import Counter
from typing import Any

from lamella.federated.ledger import Ledger
from lamella.federated.privacy import epsilon_of
from lamella.learner.config.document import build_federation
from lamella.learner.learner import Learner

__all__ = ["federated_lines", "federated_results"]


def federated_results(learner: Learner) -> dict[str, Any]:
    """Return what a result file says of the clients.

    Returns:
        "samples" [task][client]; "bytes_up", "bytes_down" and "exchanges" by call, over all tasks and clients;
        "missing", each with task and client from which call on and why; "epsilon" and "delta" where noise was added.
    """
    plan = build_federation(learner.config)
    told = [record.federated or Ledger([]).to_json() for record in learner.tasks]
    sums: dict[str, Counter[str]] = {"bytes_up": Counter(), "bytes_down": Counter(), "exchanges": Counter()}
    for task in told:
        for call, counts in task["bytes"].items():
            for total, count in zip(sums.values(), counts, strict=True):
                total[call] += count
    found: dict[str, Any] = {
        "samples": [task["samples"] for task in told],
        **{name: dict(total) for name, total in sums.items()},
        "missing": [{"task": i + 1, **entry} for i, task in enumerate(told) for entry in task["missing"]],
    }
    if plan is not None and plan.noise:
        releases = sum(task["releases"] for task in told)
        found |= {"epsilon": epsilon_of(plan.noise, releases, plan.delta), "delta": plan.delta, "releases": releases}
    return found


def federated_lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    up, down = (sum(found[f"bytes_{way}"].values()) / 1e6 for way in ("up", "down"))
    rounds = found["exchanges"].get("train", 0)
    lines = [f"sent: {up:.1f} MB up and {down:.1f} MB down by all clients, in {rounds} rounds of training"]
    for entry in found["missing"]:
        lines.append(
            f"task {entry['task']}: client {entry['client']} is missing from '{entry['since']}' on: {entry['why']}"
        )
    if "epsilon" in found:
        lines.append(
            f"privacy of a client's updates: epsilon {found['epsilon']:.1f} at delta {found['delta']:g} over "
            f"{found['releases']} rounds; sums of second moments and of features are sent without noise"
        )
    return lines
