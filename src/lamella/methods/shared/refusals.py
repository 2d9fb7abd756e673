"""What a method says when it cannot do what is asked, and the check of what it can be built on."""

from lamella.backbones import Backbone
from lamella.backbones.language_model import LanguageModel

__all__ = ["APART", "SHARED", "TASK_BY_TASK", "TRAINED", "TRAINED_ON_THEM", "check_objective"]

TRAINED = (
    "weights that were trained on its samples hold it; learn the model anew without it, or return to a version before "
    "it (`lamella rollback`)"
)
TASK_BY_TASK = (
    "what it trains or keeps is for one task after another; in a stream every small batch would be one, and a class "
    "that comes again would begin anew"
)
APART = (
    "weights were trained to tell them apart, so it would not be as if they had been one; learn the model anew with "
    "one name for both"
)
SHARED = (
    "a class cannot be dropped: the covariance that all classes share contains its samples; learn the model anew "
    "without it"
)
TRAINED_ON_THEM = "weights that were trained on them hold them"


def check_objective(method: str, answers: bool, backbone: Backbone) -> None:
    """Check that a method can learn what a backbone is for: classes, or answers.

    Args:
        method: the name of the method or of the part.
        answers: whether it can learn answers.
        backbone: what it is built on.

    Raises:
        ValueError: the backbone is a language model, and the method needs classes.
    """
    if isinstance(backbone.model, LanguageModel) and not answers:
        raise ValueError(
            f"{method} needs classes, and the language model '{backbone.name}' learns answers; use another method, "
            "such as seq-lora or inflora, or give texts with labels"
        )
