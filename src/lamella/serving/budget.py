"""A bound on what the requests of all clients together may use at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException

__all__ = ["Budget", "Share"]


class Budget:
    """An amount that all requests share. It is used from one thread, that of the event loop.

    Args:
        most: the largest amount in use at a time.
        unit: what it is counted in, for messages.

    Attributes:
        used: the amount in use.
    """

    def __init__(self, most: float, unit: str) -> None:
        self.most = most
        self.unit = unit
        self.used = 0.0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Open the share of one request, which is given back at the end of the context."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used -= share.amount


class Share:
    """What one request uses of a budget.

    Args:
        budget: the budget.

    Attributes:
        amount: what it uses.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.amount = 0.0

    def take(self, more: float) -> None:
        """Use more of the budget.

        Args:
            more: how much more.

        Raises:
            HTTPException: 413, this request alone goes beyond the budget; 503, it does so together with others.
        """
        most, unit = self.budget.most, self.budget.unit
        if self.amount + more > most:
            raise HTTPException(413, f"the request has more than {most:g} {unit}, which no request may have; send less")
        if self.budget.used + more > most:
            fault = f"the requests under way have {most:g} {unit} together already; try again soon"
            raise HTTPException(503, fault, {"Retry-After": "2"})
        self.amount += more
        self.budget.used += more
