"""Encoders of texts that transformers loads: from a folder, its hub, or a folder of sentence-transformers."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lamella.backbones.plain_layers import make_linear, part_positions
from lamella.backbones.pooling import pooled
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK, TokenTransform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Encoder", "has_class_token"]


class Encoder(nn.Module):
    """A network of transformers that gives the vectors of tokens, and a pooling that makes one vector of a text.

    Args:
        network: of transformers, without a head. Layers of it are replaced by equal ones that branches can attach to.
        pool: one of `pooling.POOLS`.
        unit: whether the vector of each text is divided by its length.
        has_class_token: whether the first token is one that stands for the whole text; see the function of this name.

    Attributes:
        has_class_token: as given.
        transposed: names of the network's layers whose weights transformers stores the other way round.
    """

    def __init__(
        self, network: "PreTrainedModel", pool: str, *, unit: bool = False, has_class_token: bool = False
    ) -> None:
        super().__init__()
        self.transposed = make_linear(network)
        part_positions(network)
        if hasattr(network.config, "use_cache"):
            network.config.use_cache = False  # no text is continued, so what was computed of it need not be kept
        self.network = network
        self.pool = pool
        self.unit = unit
        self.has_class_token = has_class_token

    def forward(self, batch: Batch) -> Tensor:
        """(n, width) features of n texts."""
        mask = batch[MASK].bool()
        features = pooled(self._tokens(batch[IDS], mask), mask, self.pool)
        return nn.functional.normalize(features, dim=1) if self.unit else features

    def plain_state(self) -> dict[str, Tensor]:
        """The network's tensors by name, laid out as transformers loads them for the network's configuration."""
        turned = {f"{name}.weight" for name in self.transposed}
        return {name: t.T if name in turned else t for name, t in self.network.state_dict().items()}

    def _tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, t, width), the vector of each token."""
        options: dict[str, Any] = {"attention_mask": mask.long(), "return_dict": True}
        return self.network(ids, **options).last_hidden_state


@torch.no_grad()
def has_class_token(network: "PreTrainedModel", transform: TokenTransform) -> bool:
    """Whether every text begins with the same special token, and this token's vector depends on those behind it.

    It does not in a causal network, whose tokens see none that come later.

    Args:
        network: of transformers, without a head.
        transform: makes its inputs.
    """
    first, *_ = transform.encode(["a"])
    if first.special_tokens_mask[0] != 1:
        return False
    ids = torch.tensor([first.ids, first.ids[:1] * len(first.ids)], device=network.device)
    was_training = network.training
    vectors: Tensor = network.eval()(ids).last_hidden_state[:, 0]
    network.train(was_training)
    return not torch.allclose(vectors[0], vectors[1], rtol=1e-6, atol=0.0)
