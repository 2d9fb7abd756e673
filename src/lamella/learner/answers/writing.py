"""The answers that a method writes: its backbone goes on with prompts as it computes with them in training."""

from collections.abc import Sequence

from lamella.backbones.generating import Generating, generate
from lamella.data.answers import Answer
from lamella.methods import Method

__all__ = ["write_answers"]


def write_answers(method: Method, prompts: Sequence[Answer], how: Generating = Generating()) -> list[str]:
    """Return an answer to each prompt, with the adapters that act in it.

    Args:
        method: what has learned answers; where its backbone is, is where it is computed.
        prompts: conversations, or plain texts to begin with nothing. A last answer that is there is not read.
        how: how answers are written.

    Raises:
        ValueError: as `lamella.backbones.generating.generate`.
    """
    return generate(method.backbone, prompts, how, acting=method.acting)
