"""Arrow: how much the inputs of layers lie along what each adapter reads most, known from the adapters alone.

Ostapenko, Su, Ponti, Charlin, Le Roux, Pereira, Caccia & Sordoni, "Towards Modular LLMs by Building and Reusing a
Library of LoRAs", ICML 2024, arXiv 2405.11157.

For each branch, v is the right singular vector of the update B A with its largest singular value: the direction of
inputs that the update answers to most strongly. An adapter's score for a sample is the mean of |cos(v, x)| over the
sample's tokens x and over the adapter's branches; the sign of a singular vector has no meaning.

Departure: the paper, and PEFT, choose for each token and each layer apart. Here an adapter has one score for each
sample, so that it can choose a classifier, too. The inputs are those of the network without adapters.
"""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.adapter import Site, watch
from lamella.adapters.branches import Adapted, Branch
from lamella.adapters.tokens import mean_over_tokens

__all__ = ["arrow_scores", "check_arrow", "leading_inputs"]


def check_arrow(sites: Sequence[Site]) -> None:
    """Refuse layers whose inputs are not vectors.

    Raises:
        ValueError: one of the layers is a convolution.
    """
    if odd := [site.name for site in sites if not isinstance(site.layer, nn.Linear)]:
        raise ValueError(
            f"router 'arrow' compares the inputs of linear layers, and '{odd[0]}' is a convolution; choose another "
            "router, such as 'least-squares'"
        )


def leading_inputs(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the first right singular vector of every product B A, (t, d) float64; zero where the product is.

    Args:
        pairs: A (r, d) and B (rows, r) of t updates of one layer; the ranks may differ.
    """
    found: list[Tensor] = []
    for A, B in pairs:
        wide_A, wide_B = A.double(), B.double()
        # B A = Q (R A) with B = Q R, and Q changes no right singular vector. So the matrix is as small as A.
        small = torch.linalg.qr(wide_B).R @ wide_A
        U = torch.linalg.eigh(small @ small.T).eigenvectors[:, -1]
        found.append(F.normalize(U @ small, dim=0))
    return torch.stack(found)


@torch.no_grad()
def arrow_scores(sites: Sequence[Site], names: Sequence[str], run: Callable[[], object]) -> Tensor:
    """Return the scores (n, adapters) of the samples in a pass, 0..1.

    Args:
        sites: the sites of the adapters; linear layers.
        names: the adapters.
        run: makes one pass over the samples.

    Raises:
        RuntimeError: a layer reads other inputs than one row of tokens for each sample.
    """
    with watch(sites, lambda layer: _Along(layer, names), padding_too=True) as seen:
        run()
    found = [score for along in seen.values() for score in along.scores]
    if len({len(score) for score in found}) != 1:
        raise RuntimeError("a layer reads other inputs than the tokens of each sample; choose another router")
    return torch.stack(found).mean(0)


_KEPT: WeakKeyDictionary[Branch, tuple[object, Tensor]] = WeakKeyDictionary()
"""By branch, the state of its tensors and the leading input that was computed from them."""


def _leading_input(branch: Branch) -> Tensor:
    """Return the leading input of a branch, (d,) float32, which is computed anew only after its tensors have changed.

    So a pass that is traced for an export has it as a constant, since ONNX has no eigenvectors.
    """
    tensors = (*branch.parameters(), *branch.buffers())
    state = [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors]
    found = _KEPT.get(branch)
    if found is None or found[0] != state:
        found = state, leading_inputs([(branch.A, branch.expansion)])[0].float()
        _KEPT[branch] = found
    return found[1]


class _Along:
    """Compares the inputs of one layer with the leading inputs of its branches."""

    def __init__(self, layer: Adapted, names: Sequence[str]) -> None:
        branches = zip(*(layer.of(name) for name in names), strict=True)
        self.directions = [torch.stack([_leading_input(b) for b in of_all]) for of_all in branches]
        self.scores: list[Tensor] = []

    def __call__(self, x: Tensor) -> None:
        with torch.autocast(x.device.type, enabled=False):
            unit = F.normalize(x.float(), dim=-1)
            self.scores += [mean_over_tokens((unit @ V.T).abs()) for V in self.directions]
