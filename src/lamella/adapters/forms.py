"""Forms of branches: what is trained beside A and B, or in their place.

    form      what is added to the rows W of a weight            trained
    "lora"    scale B A                                          A, B
    "dora"    gain (W + scale B A) - W, gain = m / |W + B A|     A, B and m, the length of each row
    "vera"    scale diag(b) B diag(d) A                          the vectors b and d

"dora": Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, arXiv 2402.09353. "vera": Kopiczko et
al., "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024, arXiv 2310.11454. The letters and the starts are those of
PEFT: d is 0.1, b is zero, and A and B have entries of U(-1, 1) times the root of 6 over their number of columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamella.common.checks import check_one_of

__all__ = ["FORMS", "check_form", "fill_shared", "vectors"]

FORMS = ("lora", "dora", "vera")
INNER_START = 0.1
"""What d is in a new branch of the form "vera"."""


def check_form(form: str, factorisation: str = "conv", tokens: str = "all") -> None:
    """Refuse an unknown form, and one that has no meaning for a factorisation or for some tokens.

    Raises:
        ValueError: the form is unknown, is not "lora" in the factorisation "kernel", or is "dora" on class tokens.
    """
    check_one_of("form", form, FORMS)
    if form != "lora" and factorisation == "kernel":
        raise ValueError(f"branches of the factorisation 'kernel' have no form '{form}'; use the factorisation 'conv'")
    if form == "dora" and tokens == "class":
        raise ValueError("branches of the form 'dora' turn rows of a weight, which all tokens pass; use tokens = 'all'")


@torch.no_grad()
def vectors(form: str, weight: Tensor, B: Tensor) -> dict[str, Tensor]:
    """Return the tensors that a new branch of this form has beside A and B, by name.

    Args:
        form: the form.
        weight: the rows of the layer's weight that the branch changes, (d_rows, ...).
        B: the branch's B, (d_rows, rank) or (d_rows, rank, 1, 1).
    """
    if form == "dora":
        return {"magnitude": weight.flatten(1).norm(dim=1)}
    if form == "vera":
        return {"inner": B.new_full((B.shape[1],), INNER_START), "outer": B.new_zeros(len(B))}
    return {}


def fill_shared(factors: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator) -> None:
    """Fill every A and B from one draw: those of smaller layers have the first rows and columns of the largest ones.

    Args:
        factors: (A, B) of each site.
        generator: draws the largest A and B.
    """
    if factors:
        _fill([A.flatten(1) for A, _ in factors], generator)
        _fill([B.flatten(1) for _, B in factors], generator)


def _fill(matrices: Sequence[Tensor], generator: torch.Generator) -> None:
    rows, columns = (max(matrix.shape[d] for matrix in matrices) for d in (0, 1))
    bound = (6 / columns) ** 0.5
    drawn = torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)
    for matrix in matrices:
        matrix.copy_(drawn[: matrix.shape[0], : matrix.shape[1]])
