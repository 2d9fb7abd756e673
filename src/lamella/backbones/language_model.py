"""A causal language model: it goes on with texts, and says how likely each token of an answer is to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones.plain_layers import make_linear
from lamella.backbones.pooling import pooled
from lamella.data.answer_tokens import TARGET
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LanguageModel", "Read", "language_model"]


class Read(NamedTuple):
    """What a network keeps of tokens that it has read, so that it can go on behind them.

    Attributes:
        cache: keys and values of transformers, which no pass changes.
        mask: (n, tokens) bool, False for padding.
    """

    cache: Any
    mask: Tensor


class LanguageModel(nn.Module):
    """A network of transformers that gives the logits of the token after each one.

    Those of the whole vocabulary are computed where a token is a target, and nowhere else.

    Args:
        network: of transformers, with its head. Layers of it are replaced by equal ones that branches can attach to.
        ends: ids of the tokens that end what it writes.

    Attributes:
        ends: as given.
        transposed: names of the network's layers whose weights transformers stores the other way round.
    """

    def __init__(self, network: "PreTrainedModel", ends: Sequence[int] = ()) -> None:
        super().__init__()
        self.transposed = make_linear(network)
        network.config.use_cache = False  # a pass over whole answers goes on with none of them
        self.network = network
        self.ends = tuple(ends)
        takes = signature(network.forward).parameters
        self._counts = "position_ids" in takes
        self._cache = "cache" if "cache" in takes else "past_key_values"  # its older name

    def forward(self, batch: Batch) -> Tensor:
        """(n, width), the vector of the last token of each answer, for those who ask any network for features."""
        network: Any = self.network.base_model
        return pooled(network(**self._inputs(batch)).last_hidden_state, batch[MASK].bool(), "last")

    def read(self, batch: Batch) -> Read:
        """Read what stands before answers, for `logits` and `losses` of what follows; padding stands on its left."""
        network: Any = self.network.base_model
        return Read(network(**self._inputs(batch), use_cache=True)[self._cache], batch[MASK].bool())

    def logits(self, batch: Batch, after: Read | None = None) -> Tensor:
        """(targets, vocabulary) of the batch's target tokens, each from the tokens before it.

        Targets are in the order of the samples, and within each of its tokens. The first token of a sample is none.

        Args:
            batch: the tokens.
            after: what stands before them, of the same samples; nothing if left out.
        """
        before = batch[TARGET].bool().roll(-1, dims=1)  # the token from whose vector each target is told
        before[:, -1] = False
        network: Any = self.network
        with self._alone(before):
            return network(**self._inputs(batch, after)).logits

    def every_logit(self, batch: Batch) -> Tensor:
        """(tokens, vocabulary) of what follows each token that counts; much memory, where a batch is long."""
        network: Any = self.network
        return network(**self._inputs(batch)).logits[batch[MASK].bool()]

    def losses(self, batch: Batch, after: Read | None = None) -> Tensor:
        """(targets,) float32, what each target token costs in nats: minus the logarithm of its probability.

        Arguments are those of `logits`.
        """
        ids = batch[IDS][:, 1:][batch[TARGET][:, 1:].bool()]
        return F.cross_entropy(self.logits(batch, after).float(), ids, reduction="none")

    def _inputs(self, batch: Batch, after: Read | None = None) -> dict[str, Any]:
        """What a network takes. A token's place is counted without padding, wherever that stands."""
        own = batch[MASK].bool()
        mask = own if after is None else torch.cat([after.mask, own], 1)
        found = {"input_ids": batch[IDS], "attention_mask": mask.long(), "return_dict": True}
        if self._counts:
            found["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -own.shape[1] :]
        if after is not None:  # a copy, because a pass adds its own tokens
            found |= {self._cache: deepcopy(after.cache), "use_cache": True}
        return found

    def plain_state(self) -> dict[str, Tensor]:
        """The network's tensors by name, laid out as transformers loads them for the network's configuration."""
        turned = {f"{name}.weight" for name in self.transposed}
        return {name: t.T if name in turned else t for name, t in self.network.state_dict().items()}

    @contextmanager
    def _alone(self, places: Tensor) -> Iterator[None]:
        """Let the head see the vectors of some tokens only; what networks do behind it, such as a cap, stays theirs.

        Args:
            places: (n, tokens) bool.
        """
        head: Any = self.network.get_output_embeddings()

        def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0][places], *inputs[1:])

        handle = head.register_forward_pre_hook(choose)
        try:
            yield
        finally:
            handle.remove()


def language_model(model: nn.Module, what: str) -> LanguageModel:
    """Return a network as a causal language model.

    Args:
        model: the network of a backbone.
        what: needs one; it begins the message.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(model, LanguageModel):
        raise ValueError(f"{what} needs a causal language model as its backbone, and {type(model).__name__} is none")
    return model


@torch.no_grad()
def gives_targets_alone(model: LanguageModel, batch: Batch) -> bool:
    """Whether the logits of targets alone are those that the whole pass gives at the same places."""
    network: Any = model.network
    whole = network(batch[IDS], attention_mask=batch[MASK].long(), return_dict=True).logits
    expected = whole[:, :-1][batch[TARGET][:, 1:].bool()]
    found = model.logits(batch)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
