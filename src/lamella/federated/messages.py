"""What clients send, and the checks that keep a broken or hostile message out of a sum."""

from collections.abc import Callable, Mapping
from statistics import median_low

import torch
from torch import Tensor

__all__ = ["Message", "accepted", "added", "bytes_of", "why_refused"]

Message = Mapping[str, Tensor]
"""Named tensors. Names that end with "count" are numbers of samples or tokens."""

SYMMETRIC = ("total", "square", "xx")
"""The last part of the names of symmetric matrices, of which the upper triangle travels."""


def _part(name: str) -> str:
    return name.rpartition("|")[2]


def bytes_of(message: Message) -> int:
    """Return the size of a message, of whose symmetric matrices only the upper triangle is sent.

    >>> bytes_of({"layer|total": torch.zeros(3, 3), "layer|count": torch.tensor(4)})
    32
    """
    numbers = {n: len(t) * (len(t) + 1) // 2 if _part(n) in SYMMETRIC else t.numel() for n, t in message.items()}
    return sum(numbers[name] * tensor.element_size() for name, tensor in message.items())


def why_refused(message: Message, like: Message) -> str:
    """Return what is wrong with a message, in words; "" if nothing is.

    Args:
        message: what a client has sent.
        like: a message of the right names, shapes and types, whatever its numbers are.
    """
    if strange := sorted(message.keys() ^ like.keys()):
        return f"'{strange[0]}' is {'unknown' if strange[0] in message else 'missing'}"
    for name, tensor in message.items():
        wanted = like[name]
        if tensor.shape != wanted.shape:
            return f"'{name}' has the shape {tuple(tensor.shape)} and not {tuple(wanted.shape)}"
        if tensor.dtype != wanted.dtype:
            return f"'{name}' holds {tensor.dtype} and not {wanted.dtype}"
        if not bool(tensor.isfinite().all()):
            return f"'{name}' holds numbers that are not finite"
        if _part(name).endswith("count") and bool((tensor < 0).any()):
            return f"'{name}' is below 0"
        if _part(name) in SYMMETRIC:
            if float((tensor - tensor.T).abs().max()) > 1e-4 * float(tensor.abs().max()):
                return f"'{name}' is not symmetric"
            if float(tensor.diagonal().min()) < 0:
                return f"'{name}' has a negative sum of squares"
    return ""


def accepted(
    replies: Mapping[int, Message], like: Message, scale: Callable[[Message], float], most: float
) -> tuple[dict[int, Message], dict[int, str]]:
    """Return the messages that may be added up, and why the others may not, by client.

    A message is refused whose scale is more than `most` times the median of all that are whole: no single client of
    three or more can then move a sum arbitrarily far.

    Args:
        replies: the message of each client that answered.
        like: as for `why_refused`.
        scale: what is compared between clients, such as the energy of a token.
        most: how many medians are allowed; above 1.
    """
    refused = {client: why for client, message in replies.items() if (why := why_refused(message, like))}
    scales = {client: scale(message) for client, message in replies.items() if client not in refused}
    middle = median_low(scales.values()) if scales else 0.0
    for client, value in scales.items():
        if middle > 0 and value > most * middle:
            refused[client] = f"its scale is {value:.3g}, and the median of all clients is {middle:.3g}"
    return {client: message for client, message in replies.items() if client not in refused}, refused


def added(messages: Mapping[int, Message]) -> dict[str, Tensor]:
    """Return the sum of messages, tensor by tensor; the order in which clients answer does not change it."""
    ordered = [messages[client] for client in sorted(messages)]
    return {name: torch.stack([message[name] for message in ordered]).sum(0) for name in ordered[0]}
