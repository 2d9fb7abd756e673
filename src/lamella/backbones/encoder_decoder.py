"""An encoder-decoder, such as T5, as a language model: its encoder reads the prompt, its decoder writes the answer."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lamella.adapters.tokens import counting
from lamella.backbones.encoder_network import longest_text
from lamella.backbones.language_model import LanguageModel, Read, before_each
from lamella.data.answer_tokens import TARGET, WRITTEN
from lamella.data.samples import Batch
from lamella.data.tokens import IDS, MASK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EncoderDecoder"]

NO_CACHE = {"use_cache": False}
"""Said in every pass, since a decoder may have a configuration of its own; with a cache no block could run twice."""


class EncoderDecoder(LanguageModel):
    """A network of transformers whose decoder writes to what its encoder reads; its batches are of `AnswerPairs`.

    The layers of a cross-attention that make keys and values read the encoder's vectors, so what counts for them are
    the encoder's tokens; for all other layers of the decoder it is the tokens that the decoder reads.

    Args:
        network: of transformers, with its head. Layers of it are replaced by equal ones that branches can attach to.
        ends: ids of the tokens that end what it writes.
        start: the id that its decoder starts from.
    """

    loaded_by = "AutoModelForSeq2SeqLM"
    peft_task = "SEQ_2_SEQ_LM"
    written = WRITTEN

    def __init__(self, network: "PreTrainedModel", ends: Sequence[int] = (), *, start: int) -> None:
        super().__init__(network, ends)
        self.start = start

    def vectors(self, batch: Batch) -> Tensor:
        """(n, tokens, width), the vector of each token that the decoder reads, without the head."""
        decoder: Any = self.network.get_decoder()
        with self._read(batch) as read:
            options = {"encoder_hidden_states": read[0], "encoder_attention_mask": batch[MASK].long(), **NO_CACHE}
            return decoder(batch[WRITTEN], **options, return_dict=True).last_hidden_state

    def from_head(self, batch: Batch, after: Read | None = None) -> Tensor:
        """What the head makes of the vectors that it sees: (n, tokens, vocabulary) logits, where it sees all."""
        network: Any = self.network
        with self._read(batch, after) as read:
            options = self.inputs(batch) | {IDS: None, "encoder_outputs": read, **NO_CACHE}
            return network(**options, return_dict=True).logits

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The arguments of transformers' networks for a batch."""
        return {IDS: batch[IDS], MASK: batch[MASK].long(), WRITTEN: batch[WRITTEN]}

    def read(self, prompts: Batch) -> Read:
        """What the encoder makes of prompts, for the `logits` and `losses` of several answers to them."""
        return Read(self._encoded(prompts), prompts[MASK].bool())

    def counted(self, batch: Batch) -> Tensor:
        """(n, tokens) bool, the tokens that the decoder reads: what it starts from, and all targets but the last."""
        found = before_each(batch[TARGET])
        found[:, 0] = True
        return found

    def _encoded(self, batch: Batch) -> Any:
        encoder: Any = self.network.get_encoder()
        return encoder(batch[IDS], attention_mask=batch[MASK].long(), return_dict=True)

    @contextmanager
    def _read(self, batch: Batch, after: Read | None = None) -> Generator[Any]:
        """What the encoder makes of prompts; within this context the decoder's tokens count, and those it looks at."""
        read = self._encoded(batch) if after is None else after.state
        with counting(self.counted(batch), beside=(read[0], batch[MASK].bool())):
            yield read

    def longest_prompt(self, more: int) -> int | None:
        """The largest number of tokens that so many can be written to; 0 where the decoder cannot write so many."""
        longest = longest_text(self.network)
        return longest if longest is None or more <= longest else 0

    def longest_answer(self, prompt: int) -> int | None:
        """The largest number of tokens that can be written to so many; 0 where the encoder cannot read so many."""
        return self.longest_prompt(prompt)  # positions are apart, and as many
