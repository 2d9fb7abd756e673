"""Which variants of branches suit which methods: what a method needs of a branch, and what a variant breaks of it.

A method lists what it needs in its class attribute `needs`. A variant is a setting of `LoRA` that is not the default;
it lists here what it breaks. A combination is refused when the method is built if the variant breaks something that the
method needs. The table in the documentation is made from the same two lists.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from lamella.training.recipe import LoRA

__all__ = ["EVERYTHING", "NEEDS", "VARIANTS", "Variant", "broken", "check_variants"]

NEEDS = {
    "own A": "the method chooses itself what each A reads, and of which rank it is",
    "reads A": "an update reads the directions in A's rows alone, so that inputs outside of these give what they gave",
    "product": "the change of a weight is scale times B A, linear in B",
    "trained pair": "A and B are both trained",
    "frozen weight": "the weight beneath the branches stays as it is, since other branches on it need it",
    "one rank": "all branches have the same rank",
}
"""What methods need of a branch, by name, each as a sentence."""

EVERYTHING = frozenset(NEEDS)


@dataclass(frozen=True)
class Variant:
    """A setting of `LoRA` that is not the default.

    Attributes:
        setting: how it is written in a configuration.
        what: what it is, in a few words.
        chosen: tells whether a recipe has it.
        breaks: the names of what it breaks, of `NEEDS`.
        why: what it does that breaks them, as the end of a sentence; empty if it breaks nothing.
    """

    setting: str
    what: str
    chosen: Callable[[LoRA], bool]
    breaks: frozenset[str] = frozenset()
    why: str = ""


def _value(setting: str, value: str, what: str, breaks: Collection[str] = (), why: str = "") -> Variant:
    """Return the variant in which a setting of words has this value."""
    return Variant(f'{setting} = "{value}"', what, lambda lora: getattr(lora, setting) == value, frozenset(breaks), why)


_MOVES = ("own A", "reads A", "product", "frozen weight"), "it moves a part of the weight into A and B"
VARIANTS = (
    Variant("alpha", "scale alpha / rank", lambda lora: lora.alpha is not None and lora.scaling == "rank"),
    _value("scaling", "root", "rsLoRA: scale alpha / sqrt(rank)"),
    Variant("b_rate", "LoRA+: a learning rate for B", lambda lora: lora.b_rate != 1),
    Variant("dropout", "dropout on the input of branches", lambda lora: lora.dropout > 0),
    _value("start", "orthonormal", "random orthonormal rows of A", ["own A"], "it sets A"),
    _value("start", "eva", "EVA: A reads the task's leading directions", ["own A"], "it sets A"),
    _value("start", "pissa", "PiSSA: the largest singular values of the weight", *_MOVES),
    _value("start", "milora", "MiLoRA: the smallest singular values of the weight", *_MOVES),
    Variant(
        "explained",
        "a rank for each branch, by explained energy",
        lambda lora: lora.explained is not None,
        frozenset({"own A", "one rank"}),
        "it gives each branch a rank of its own",
    ),
    _value(
        "form",
        "dora",
        "DoRA: lengths of rows trained beside directions",
        ["reads A", "product"],
        "it scales whole rows of the weight, which read every input",
    ),
    _value(
        "form",
        "vera",
        "VeRA: two vectors beside random A and B",
        ["own A", "trained pair"],
        "its A and B are random, the same everywhere, and not trained",
    ),
)
"""The variants, in the order of the table in the documentation."""


def broken(needs: Collection[str], variant: Variant) -> list[str]:
    """Return what a variant breaks of what a method needs, in the order of `NEEDS`."""
    return [need for need in NEEDS if need in needs and need in variant.breaks]


def check_variants(method: str, needs: Collection[str], lora: LoRA) -> None:
    """Refuse branches that break something that a method needs.

    Args:
        method: the name of the method, for the message.
        needs: the names of what it needs, of `NEEDS`.
        lora: the form of its branches.

    Raises:
        ValueError: a variant breaks something; the message says what, and why.
    """
    for variant in VARIANTS:
        if variant.chosen(lora) and (found := broken(needs, variant)):
            raise ValueError(
                f"{method} cannot have branches with {variant.setting}: {variant.why}, but in this method "
                f"{NEEDS[found[0]]}; leave {variant.setting.partition(' ')[0]} out, or choose another method"
            )
