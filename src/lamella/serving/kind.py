"""What differs between servers of images, texts and answers: how samples arrive, and are predicted and learned."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from fastapi import HTTPException, Request, UploadFile

from lamella.learner.learner import Learner

__all__ = ["Columns", "Kind", "Named", "Prepared", "Unpacked", "refused_kind"]

Prepared = TypeVar("Prepared")
"""The samples of one request as the batcher takes them."""


class Named(NamedTuple):
    """One sample as it was sent.

    Attributes:
        name: what its prediction is called by in the answer.
        content: the sample: the file of an image, or a text.
    """

    name: str
    content: Any


class Unpacked(NamedTuple):
    """What an upload to learn from holds.

    Attributes:
        samples: how many samples it has.
        ignored: the names of the files that are no samples.
    """

    samples: int
    ignored: tuple[str, ...] = ()


class Columns(NamedTuple):
    """The columns of a table to learn from; "" for the usual names.

    Attributes:
        text: the column of the texts.
        label: the column of their labels.
    """

    text: str = ""
    label: str = ""


class Kind(Protocol[Prepared]):
    """Samples of one kind, as a server meets them.

    Attributes:
        noun: what one sample is called, such as "image".
        most: how many samples a request to predict may have.
        waiting: how many samples of all clients may wait at a time.
        together: the batcher waits for no further request once it has so many samples.
        body: the body of a request to predict, as OpenAPI describes it.
        archive: what an upload to learn from is, in words.
        does: what a client may do with the model, in words.
    """

    noun: str
    most: int
    waiting: int
    together: int
    body: dict[str, Any]
    archive: str
    does: str

    def read(self, request: Request) -> AbstractAsyncContextManager[Sequence[Named]]:
        """Read the samples of a request to predict, which stay readable in the context.

        Raises:
            HTTPException: 400, 413, 415 or 422, the request is refused; 507, the disk is full.
        """
        ...

    async def prepare(self, samples: Sequence[Named], learner: Learner) -> Prepared:
        """Return the samples as the batcher takes them.

        Raises:
            HTTPException: 413, 415 or 422, a sample is refused; 503, there is too much to do.
        """
        ...

    def predict(self, learner: Learner, requests: Sequence[Prepared], top: int) -> list[Any]:
        """Predict the samples of several requests together, in their order. The thread of the batcher calls this.

        What it returns for each is a `Prediction`, where samples have classes.

        Raises:
            ValueError: the model cannot predict.
        """
        ...

    def unpack(self, upload: UploadFile, folder: Path, columns: Columns) -> Unpacked:
        """Store the samples of an upload to learn from.

        Args:
            upload: the file that was sent.
            folder: an empty folder that receives them.
            columns: of a table.

        Raises:
            HTTPException: 413, 415 or 422, the upload is refused; 507, the disk is full.
        """
        ...

    def close(self) -> None:
        """End the threads of this kind."""
        ...


def refused_kind(takes: str, how: str) -> HTTPException:
    """Return the refusal of samples of another kind.

    Args:
        takes: what the model takes, in the plural.
        how: how to send that.
    """
    return HTTPException(415, f"this model takes {takes} and nothing else: {how}")
