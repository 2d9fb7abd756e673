"""Encoders of texts that transformers loads: from a folder, its hub, or a folder of sentence-transformers."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lamella.backbones.pooling import pooled
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """A network of transformers that gives the vectors of tokens, and a pooling that makes one vector of a text.

    Args:
        network: of transformers, without a head.
        pool: one of `pooling.POOLS`.

    Attributes:
        has_class_token: whether the first token is one that stands for the whole text.
    """

    def __init__(self, network: "PreTrainedModel", pool: str) -> None:
        super().__init__()
        self.network = network
        self.pool = pool

    def forward(self, batch: Batch) -> Tensor:
        """(n, width) features of n texts."""
        mask = batch[MASK].bool()
        options: dict[str, Any] = {"attention_mask": mask.long(), "return_dict": True}
        tokens = self.network(batch[IDS], **options).last_hidden_state
        return pooled(tokens, mask, self.pool)
