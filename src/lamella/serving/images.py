"""A server of images: files that several threads decode, and archives of class folders."""

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException, Request
from fastapi import UploadFile as Upload
from starlette.datastructures import UploadFile
from torch import Tensor

from lamella.data.decoding import decode, image_endings
from lamella.data.images import TensorSet
from lamella.data.samples import View
from lamella.learner.learner import Learner, Prediction
from lamella.serving.budget import Budget
from lamella.serving.forms import JSON, MULTIPART, form_of, media_type
from lamella.serving.kind import Columns, Named, Unpacked, refused_kind
from lamella.serving.limits import Limits
from lamella.serving.uploads import Packed, check_image, unpack

__all__ = ["ImageKind", "packed_images"]

READERS = min(4, os.cpu_count() or 1)
LARGE = 12
"""An image with more megapixels is decoded alone: one of 50 takes a gigabyte on its way to the backbone's input."""
HOW = "send each one as a file of a form, as curl -F images=@photo.jpg does"
FILES = {"type": "array", "minItems": 1, "items": {"type": "string", "contentMediaType": "application/octet-stream"}}


def packed_images(limits: Limits) -> Packed:
    """Return what an archive of images holds.

    Args:
        limits: the bound on the pixels of an image.
    """

    def check(path: Path, name: str) -> None:
        with path.open("rb") as file:
            check_image(file, name, limits)

    return Packed("image", ".jpg", image_endings(), {".txt"}, check)


class ImageKind:
    """Images; a `Kind`.

    Args:
        limits: the bounds on images.

    Attributes:
        pixels: the megapixels of all images that wait to be decoded.
    """

    noun = "image"
    together = 32
    archive = "a zip of CLASS/*.jpg"
    does = "predict, and teach it new classes"
    body: dict[str, Any] = {  # noqa: RUF012
        "required": True,
        "content": {
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": FILES | {"description": "one or more image files"}},
                }
            }
        },
    }

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most, self.waiting = limits.images, limits.waiting
        self.pixels = Budget(limits.megapixels_together, "megapixels")
        self._one_large = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="lamella-read")

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Sequence[Named]]:
        """Read the files `images` of a form."""
        if media_type(request) == JSON:
            raise refused_kind("images", HOW)
        async with form_of(request) as form:
            if "images" not in form and ("text" in form or "texts" in form):
                raise refused_kind("images", HOW)
            found: list[Named] = []
            for file in form.getlist("images"):
                if not isinstance(file, UploadFile):
                    raise HTTPException(422, f"images: a text stands where a file should be; {HOW}")
                found.append(Named(file.filename or "image", file))
            if not found:
                raise HTTPException(422, f"images: Field required; {HOW}")
            yield found

    async def prepare(self, samples: Sequence[Named], learner: Learner) -> Tensor:
        """Decode the files into the backbone's input, `(n, 3, size, size)`."""
        loop, view = asyncio.get_running_loop(), learner.backbone.transform.view()
        contents = [(await file.read(), name) for name, file in samples]
        with self.pixels.share() as share:
            sizes = [self._size(*each) for each in contents]
            share.take(sum(sizes))
            tasks = [(view, *each, size) for each, size in zip(contents, sizes, strict=True)]
            decoded = (loop.run_in_executor(self._readers, self._decode, *task) for task in tasks)
            return torch.cat(await asyncio.gather(*decoded))

    def predict(self, learner: Learner, requests: Sequence[Tensor], top: int) -> list[Prediction]:
        """Predict the images of all requests as one batch."""
        return learner.predict(TensorSet.unlabelled(torch.cat(list(requests)), noun="image"), top=top)

    def unpack(self, upload: Upload, folder: Path, columns: Columns) -> Unpacked:
        """Unpack a zip of class folders."""
        if any(columns):
            raise HTTPException(422, "text and label name columns of a table of texts, and this model takes images")
        return unpack(upload.file, folder, packed_images(self.limits), self.limits)

    def _size(self, content: bytes, name: str) -> float:
        """Return the size of an image according to its header, in units of 1,000,000 pixels."""
        if not content:
            raise HTTPException(422, f"'{name}' is empty; send an image")
        return check_image(io.BytesIO(content), name, self.limits)

    def _decode(self, view: View, content: bytes, name: str, size: float) -> Any:
        """Decode one image into the backbone's input, `(1, 3, size, size)`."""
        with self._one_large if size > LARGE else nullcontext():
            try:
                pixels = decode(content, f"'{name}'")
            except ValueError as error:
                raise HTTPException(422, str(error)) from None
            return view([pixels], torch.zeros(1, dtype=torch.int64))

    def close(self) -> None:
        """End the threads that decode."""
        self._readers.shutdown(cancel_futures=True)
