"""Bounds on the requests of clients."""

from dataclasses import dataclass, replace
from typing import Self

__all__ = ["MB", "Limits"]

MB = 1_000_000
ROOM = 200
"""The bytes of a request around each text, such as the head of a part of a form."""


@dataclass(frozen=True)
class Limits:
    """Bounds on the requests of clients. A request beyond them is refused, and nothing of it is stored.

    Attributes:
        predict_mb: the size of a request to predict, in units of 1,000,000 bytes.
        predict_mb_together: the size of all requests to predict that are under way at a time, in the same unit.
        megapixels_together: the size of all images that wait to be decoded at a time, as for `megapixels`.
        learn_mb: the size of an archive to learn from, in the same unit.
        unpacked_mb: the total size of the unpacked files of an archive, in the same unit.
        megapixels: the size of one image according to its header, in units of 1,000,000 pixels.
        images: the number of images in a request to predict.
        texts: the number of texts in a request to predict.
        characters: the number of characters of one text in a request to predict.
        prompts: the number of prompts in a request to go on with texts.
        batch_tokens: the number of tokens, padding included, that a model of texts computes at once; a text that alone
            has more is computed alone. Of a model of answers also the largest number of a prompt and its answer.
        files: the number of files in an archive.
        table_mb: the size of a table to learn from, in units of 1,000,000 bytes.
        table_lines: the number of lines of a table.
        waiting: the number of images of all clients that may wait for the model at the same time.
        waiting_texts: the same for texts.
        waiting_prompts: the same for prompts, those that are answered just then among them.
        upload_seconds: the time until an archive to learn from has arrived.
        predict_upload_seconds: the time until a request to predict has arrived.
        predict_seconds: the time until a request to predict is answered.
        answer_seconds: the time until all that a model writes to a request is written.
        learn_seconds: the time until a job is stopped.
    """

    predict_mb: float = 64
    predict_mb_together: float = 256
    megapixels_together: float = 800
    learn_mb: float = 512
    unpacked_mb: float = 2048
    megapixels: float = 50
    images: int = 64
    texts: int = 256
    characters: int = 20_000
    prompts: int = 16
    batch_tokens: int = 8192
    files: int = 5000
    table_mb: float = 32
    table_lines: int = 200_000
    waiting: int = 512
    waiting_texts: int = 4096
    waiting_prompts: int = 128
    upload_seconds: float = 600
    predict_upload_seconds: float = 60
    predict_seconds: float = 60
    answer_seconds: float = 600
    learn_seconds: float = 24 * 3600

    def of_texts(self) -> Self:
        """The same bounds for a server of texts, where a request to predict is no larger than its texts may be.

        JSON takes at most six bytes for a character of 16 bits. Reading it takes a multiple of its size in memory.
        """
        largest = self.texts * (6 * self.characters + ROOM) / MB
        return replace(self, predict_mb=min(self.predict_mb, largest))
