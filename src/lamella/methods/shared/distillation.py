"""Distillation: a network in training keeps the outputs of a frozen copy of itself.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

import copy
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["distillation", "frozen_copy"]

M = TypeVar("M", bound=nn.Module)


def distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Return the cross-entropy of the student's softened outputs against the teacher's, averaged over n images.

    -1/n sum_i sum_c softmax(teacher_i / T)_c log softmax(student_i / T)_c: the Kullback-Leibler divergence plus the
    teacher's entropy, so both have the same gradient. There is no factor T^2.

    Args:
        student_logits: (n, c).
        teacher_logits: (n, c), of the same classes in the same order. No gradient reaches them.
        temperature: T, above 0; above 1 it softens the outputs of both.

    Returns:
        A scalar, at least in float32.

    Raises:
        ValueError: the temperature is not above 0, or the shapes differ.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be above 0; 2 is usual")
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"{tuple(student_logits.shape)} outputs of the student cannot be compared with "
            f"{tuple(teacher_logits.shape)} of the teacher; give both the same samples and classes"
        )
    target = (teacher_logits.detach().float() / temperature).softmax(1)
    return -(target * (student_logits.float() / temperature).log_softmax(1)).sum(1).mean()


def frozen_copy(module: M) -> M:
    """Return an independent copy in eval mode whose parameters are not trainable.

    Keep it in a local variable of `learn`: an attribute of the method would be stored with the model.
    """
    return copy.deepcopy(module).eval().requires_grad_(False)
