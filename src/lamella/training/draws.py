"""Random numbers in a loss, with draws that an interruption does not change."""

import torch
from torch import nn

__all__ = ["Draws"]


class Draws(nn.Module):
    """A part of a method whose loss draws random numbers; a training loop seeds it before each step.

    A loss cannot tell which step it is asked for, so a generator of its own would begin anew after an interruption.

    Attributes:
        generator: draws the numbers, on the device of the training; None outside of training.
    """

    generator: torch.Generator | None = None
