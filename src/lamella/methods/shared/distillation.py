"""Distillation: a trained-on network that answers as a frozen copy of itself did.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

import copy
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["distillation", "frozen_copy"]

M = TypeVar("M", bound=nn.Module)


def distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Cross-entropy of the student's softened outputs against the teacher's, the mean over n images.

    -1/n sum_i sum_c softmax(teacher_i / T)_c log softmax(student_i / T)_c: above the Kullback-Leibler divergence by the
    teacher's entropy, so both have the same gradient. There is no factor T^2.

    Args:
        student_logits, teacher_logits: (n, c) of the same classes in the same order.
        temperature: T; above 1 it softens both.

    Returns:
        A scalar in float32 at least. No gradient reaches the teacher.

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
    """An independent copy in eval mode that cannot be trained.

    Keep it in a local variable of `learn`: as an attribute of the method it would become part of what is stored.
    """
    return copy.deepcopy(module).eval().requires_grad_(False)
