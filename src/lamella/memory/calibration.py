"""Calibration of logits by a predicted task.

    pi = softmax(s / tau)                   of the task scores s (n, T)
    conf = pi_(1) - pi_(2)                  the lead of the best task over the second; 0 if there is only one
    c = min(1 - 1e-6, beta conf)            never 1, so that classes of other tasks keep their order

Three forms, of which every one leaves the logits as they are where beta or the confidence is 0 ("mix": their softmax),
and none changes the order of classes of one task:

    "add"     z_k + beta conf log pi_task(k)
    "scale"   z_min + (z_k - z_min) (1 - c + c pi_task(k)), where z_min is the least logit of the sample
    "mix"     log((1 - c) softmax(z)_k + c softmax(z among the classes of the best task)_k)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lamella.common.checks import check_one_of

__all__ = ["FORMS", "Calibration"]

FORMS = ("add", "scale", "mix")
SUREST = 1 - 1e-6


@dataclass(frozen=True)
class Calibration:
    """Changes logits by task scores.

    Attributes:
        strength: beta, at least 0; 0 changes nothing.
        temperature: tau, above 0.
        form: how the confidence enters, one of FORMS.

    Raises:
        ValueError: a value is not allowed.
    """

    strength: float
    temperature: float
    form: str = "add"

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"the calibration strength {self.strength} must not be negative; 0 turns it off")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be above 0; 0.1 is usual")
        check_one_of("calibration form", self.form, FORMS)

    def probabilities(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return log pi (n, T) and conf (n,), the lead of the best task over the second; 0 if there is only one."""
        log_pi = (scores / self.temperature).log_softmax(1)
        best = log_pi.exp().topk(min(2, log_pi.shape[1]), dim=1).values
        return log_pi, best[:, 0] - best[:, -1]

    def __call__(self, logits: Tensor, scores: Tensor, task_of: Sequence[int]) -> Tensor:
        """Return the calibrated logits (n, classes).

        Args:
            logits: (n, classes).
            scores: (n, T).
            task_of: the task of each class.
        """
        if self.strength == 0:
            return logits
        if self.form == "add":
            return logits + self.term(scores, task_of)
        log_pi, confidence = self.probabilities(scores)
        owners = torch.tensor(task_of, device=logits.device)
        c = (self.strength * confidence).clamp_max(SUREST)[:, None]
        if self.form == "scale":
            least = logits.min(1, keepdim=True).values
            return least + (logits - least) * (1 - c + c * log_pi.exp()[:, owners])
        wide = torch.promote_types(logits.dtype, torch.float32)
        others = owners != log_pi.argmax(1, keepdim=True)
        P = logits.softmax(1, dtype=wide)
        of_best = logits.to(wide).masked_fill(others, -torch.inf).softmax(1)
        return ((1 - c) * P + c * of_best).clamp_min(torch.finfo(wide).tiny).log()

    def term(self, scores: Tensor, task_of: Sequence[int]) -> Tensor:
        """Return beta conf log pi of the task of each class, (n, classes).

        Args:
            scores: (n, T).
            task_of: the task of each class.
        """
        log_pi, confidence = self.probabilities(scores)
        return self.strength * confidence[:, None] * log_pi[:, torch.tensor(task_of, device=log_pi.device)]
