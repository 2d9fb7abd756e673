"""How large a client's message is, to be compared with those of the others."""

from collections.abc import Mapping

from torch import Tensor

from lamella.federated.messages import Message

__all__ = ["MOST_ENERGY", "MOST_UPDATE", "change", "energy_of_features", "energy_of_moments", "norm"]

MOST_ENERGY = 10.0
"""How many medians of all clients the energy of a client's inputs or features may be."""
MOST_UPDATE = 100.0
"""The same for the norm of an update, which also grows with the number of a client's steps."""


def change(message: Message, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return by how much a client's tensors differ from those that it started with."""
    return {name: message[name] - tensor for name, tensor in start.items()}


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the norm of all tensors together."""
    return sum(float(t.double().square().sum()) for t in tensors.values()) ** 0.5


def energy_of_moments(message: Message) -> float:
    """Return the largest mean energy of a layer's inputs."""
    keys = [name.rpartition("|")[0] for name in message if name.endswith("|count")]
    return max(float(message[f"{k}|total"].trace()) / max(int(message[f"{k}|count"]), 1) for k in keys)


def energy_of_features(message: Message) -> float:
    """Return the mean energy of features."""
    square = message["square"] if "square" in message else message["xx"]
    return float(square.trace()) / max(int(message["count"].sum()), 1)
