"""A language model: it goes on with texts, and says how likely each token of an answer is to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.backbones.encoder_network import longest_text
from lamella.backbones.plain_layers import make_linear
from lamella.backbones.pooling import pooled
from lamella.data.answer_tokens import TARGET
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LanguageModel", "Read", "before_each", "gives_targets_alone", "language_model"]


class Read(NamedTuple):
    """What a network keeps of tokens that it has read, so that it can go on behind them.

    Attributes:
        state: keys and values as transformers has them, or of an encoder its vectors. No pass changes it.
        mask: (n, tokens) bool, False for padding.
    """

    state: Any
    mask: Tensor


class LanguageModel(nn.Module):
    """A network of transformers that gives the logits of the token after each one, such as a causal language model.

    Those of the whole vocabulary are computed where a token is a target, and nowhere else. What reads and writes other
    rows of tokens than the ones of a causal model is a class derived from this, which says what they are.

    Args:
        network: of transformers, with its head. Layers of it are replaced by equal ones that branches can attach to.
        ends: ids of the tokens that end what it writes.

    Attributes:
        ends: as given.
        transposed: names of the network's layers whose weights transformers stores the other way round.
        start: the token that whatever is written starts from; None where that is the last one of what is read.
        goes_on: whether answers cost as much behind what was read once as in whole passes; None until it was tried.
    """

    loaded_by = "AutoModelForCausalLM"
    """The class of transformers that loads such a network."""
    peft_task = "CAUSAL_LM"
    """What PEFT calls it."""
    written = IDS
    """The tensor of a batch that its targets are tokens of."""
    start: int | None = None
    goes_on: bool | None = None

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
        return pooled(self.vectors(batch), self.counted(batch), "last")

    def vectors(self, batch: Batch) -> Tensor:
        """(n, tokens, width), the vector of each token of `written`, without the head."""
        network: Any = self.network.base_model
        return network(**self.inputs(batch), return_dict=True).last_hidden_state

    def from_head(self, batch: Batch, after: Read | None = None) -> Tensor:
        """What the head makes of the vectors that it sees: (n, tokens, vocabulary) logits, where it sees all."""
        network: Any = self.network
        given = self.inputs(batch)
        if after is not None:  # a copy of what was read, because a pass adds its own tokens
            mask = torch.cat([after.mask, batch[MASK].bool()], 1)
            given = self._placed(batch, mask) | {self._cache: deepcopy(after.state), "use_cache": True}
        return network(**given, return_dict=True).logits

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The arguments of transformers' networks for a batch."""
        return self._placed(batch, batch[MASK].bool())

    def _placed(self, batch: Batch, mask: Tensor) -> dict[str, Any]:
        """The arguments for the last tokens of a mask (n, tokens). Their places are counted without padding."""
        found: dict[str, Any] = {IDS: batch[IDS], MASK: mask.long()}
        if self._counts:
            found["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -batch[IDS].shape[1] :]
        return found

    def counted(self, batch: Batch) -> Tensor:
        """(n, tokens) bool, the tokens that count of those with a vector, which those of `written` are."""
        return batch[MASK].bool()

    def longest_prompt(self, more: int) -> int | None:
        """The largest number of tokens that so many more can be written to; None where no number is the largest."""
        longest = longest_text(self.network)
        return None if longest is None else longest - more

    def longest_answer(self, prompt: int) -> int | None:
        """The largest number of tokens that can be written to so many; None where no number is the largest."""
        return self.longest_prompt(prompt)  # both share the network's positions

    def read(self, prompts: Batch) -> Read:
        """Read what stands before answers, once, for `logits` and `losses` of several; see `AnswerTokens.prompted`."""
        network: Any = self.network.base_model
        found = network(**self.inputs(prompts), use_cache=True, return_dict=True)
        return Read(found[self._cache], prompts[MASK].bool())

    def logits(self, batch: Batch, after: Read | None = None) -> Tensor:
        """(targets, vocabulary) of the batch's target tokens, each from the tokens before it.

        Targets are in the order of the samples, and within each of its tokens. The first token of a sample is none.

        Args:
            batch: the tokens.
            after: what the network has read before them, of the same samples; nothing if left out.
        """
        with self._alone(before_each(batch[TARGET])):
            return self.from_head(batch, after)

    def every_logit(self, batch: Batch) -> Tensor:
        """(tokens, vocabulary) of what follows each token that counts; much memory, where a batch is long."""
        return self.from_head(batch)[self.counted(batch)]

    def losses(self, batch: Batch, after: Read | None = None) -> Tensor:
        """(targets,) float32, what each target token costs in nats: minus the logarithm of its probability.

        Arguments are those of `logits`.
        """
        ids = batch[self.written][:, 1:][batch[TARGET][:, 1:].bool()]
        return F.cross_entropy(self.logits(batch, after).float(), ids, reduction="none")

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


def before_each(target: Tensor) -> Tensor:
    """(n, tokens) bool: the tokens before targets (n, tokens), from whose vectors these are told."""
    before = target.bool().roll(-1, dims=1)
    before[:, -1] = False
    return before


def language_model(model: nn.Module, what: str) -> LanguageModel:
    """Return a network as a language model.

    Args:
        model: the network of a backbone.
        what: needs one; it begins the message.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(model, LanguageModel):
        raise ValueError(f"{what} needs a language model as its backbone, and {type(model).__name__} is none")
    return model


@torch.no_grad()
def gives_targets_alone(model: LanguageModel, batch: Batch) -> bool:
    """Whether the logits of targets alone are those that the whole pass gives at the same places."""
    expected = model.from_head(batch)[:, :-1][batch[TARGET][:, 1:].bool()]
    found = model.logits(batch)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
