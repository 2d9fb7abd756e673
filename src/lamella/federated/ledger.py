"""What was sent in a task, and who was missing."""

from collections.abc import Mapping
from typing import Any

from lamella.federated.messages import Message, bytes_of

__all__ = ["Ledger"]

NO_ANSWER = "no answer"


class Ledger:
    """The messages of one task.

    Args:
        samples: how many samples of the task each client has.
    """

    def __init__(self, samples: list[int]) -> None:
        self.samples = samples
        self.bytes: dict[str, list[int]] = {}
        self.missing: list[dict[str, Any]] = []
        self.releases = 0  # rounds whose result was published with noise

    def note(self, call: str, replies: Mapping[int, Message], missing: Mapping[int, str]) -> None:
        """Note what the clients have sent in one exchange of messages.

        Args:
            call: the name of the call within the task.
            replies: what the clients sent.
            missing: why what a client should have said was not used, by client.
        """
        up, down, exchanges = self.bytes.get(call, [0, 0, 0])
        self.bytes[call] = [up + sum(map(bytes_of, replies.values())), down, exchanges + 1]
        told = {(entry["client"], entry["why"]) for entry in self.missing}
        for client, why in sorted(missing.items()):
            if (client, why) not in told:  # who is gone is gone in all that follows
                self.missing.append({"client": client, "since": call, "why": why})

    def sent(self, call: str, size: int) -> None:
        """Note how many bytes the server has sent in an exchange that is noted already."""
        self.bytes[call][1] += size

    def to_json(self) -> dict[str, Any]:
        """Return the record: samples by client, [bytes up, down, exchanges] by call, who was missing, noisy rounds."""
        return {name: getattr(self, name) for name in ("samples", "bytes", "missing", "releases")}
