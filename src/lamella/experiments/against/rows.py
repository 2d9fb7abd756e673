"""What a comparison gives."""

from dataclasses import dataclass

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """One quantity that both sides have computed.

    Attributes:
        quantity: what was compared.
        on: on what.
        difference: the largest difference; 0 where something must be the same.
        allowed: the largest one that is still rounding.
    """

    quantity: str
    on: str
    difference: float
    allowed: float

    @property
    def equal(self) -> bool:
        """Whether the difference is within what is allowed; NaN is not."""
        return self.difference <= self.allowed
