"""From the image files of a request to predictions: several threads read the files, the batcher's thread predicts."""

import asyncio
import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from fastapi import HTTPException, UploadFile
from torch import Tensor

from lamella.data.decoding import decode
from lamella.data.transform import ImageView, of_images
from lamella.serving.batching import Answer, Batcher
from lamella.serving.budget import Budget
from lamella.serving.limits import Limits
from lamella.serving.uploads import check_image

__all__ = ["PredictionQueue"]

READERS = min(4, os.cpu_count() or 1)
LARGE = 12
"""An image with more megapixels is decoded alone: one of 50 takes a gigabyte on its way to the backbone's input."""


class PredictionQueue:
    """Queues the images of requests and returns their predictions.

    Args:
        batcher: the batcher that predicts.
        limits: the bounds on images and time.

    Attributes:
        waiting: how many images wait for their prediction.
    """

    def __init__(self, batcher: Batcher, limits: Limits) -> None:
        self.batcher = batcher
        self.limits = limits
        self.waiting = 0
        self.pixels = Budget(limits.megapixels_together, "megapixels")
        self._one_large = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="lamella-read")

    async def predict(self, files: Sequence[UploadFile], top: int) -> Answer:
        """Predict the classes of images. The batcher keeps them together, so one version of the model answers for all.

        Args:
            files: the image files of one request.
            top: how many classes to name for each image.

        Raises:
            HTTPException: 413, 415 or 422, an image is refused; 503, too many images wait, the model does not answer in
                time, it has learned nothing, or it cannot predict.
        """
        if not self.batcher.loaded.learner.tasks:
            raise HTTPException(503, "this model has learned nothing yet; send a task to /learn first")
        if len(files) > self.limits.images:
            raise HTTPException(
                413, f"{len(files)} images were sent at once; {self.limits.images} are allowed, send the rest later"
            )
        if self.waiting + len(files) > self.limits.waiting:
            raise HTTPException(503, f"{self.waiting} images wait already; try again soon", {"Retry-After": "1"})
        self.waiting += len(files)
        try:
            return await asyncio.wait_for(self._predict(files, top), self.limits.predict_seconds)
        except TimeoutError:
            fault = f"no answer within {self.limits.predict_seconds:g} s; try again with fewer images"
            raise HTTPException(503, fault, {"Retry-After": "5"}) from None
        finally:
            self.waiting -= len(files)

    async def _predict(self, files: Sequence[UploadFile], top: int) -> Answer:
        loop = asyncio.get_running_loop()
        contents = [(await file.read(), file.filename or "image") for file in files]
        with self.pixels.share() as share:
            sizes = [self._size(*each) for each in contents]
            share.take(sum(sizes))
            tasks = [(*each, size) for each, size in zip(contents, sizes, strict=True)]
            inputs = await asyncio.gather(*(loop.run_in_executor(self._readers, self._prepare, *t) for t in tasks))
        try:
            return await asyncio.wrap_future(self.batcher.submit(torch.cat(inputs), top))
        except ValueError as error:  # the fault of the model, since each image could be read
            raise HTTPException(503, str(error)) from None

    def _size(self, content: bytes, name: str) -> float:
        """Return the size of an image according to its header, in units of 1,000,000 pixels."""
        if not content:
            raise HTTPException(422, f"'{name}' is empty; send an image")
        return check_image(io.BytesIO(content), name, self.limits)

    def _prepare(self, content: bytes, name: str, size: float) -> Tensor:
        """Decode one image into the backbone's input, `(1, 3, size, size)`."""
        with self._one_large if size > LARGE else nullcontext():
            return self._decoded(content, name)

    def _decoded(self, content: bytes, name: str) -> Tensor:
        try:
            pixels = decode(content, f"'{name}'")
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return self._view()([pixels], torch.zeros(1, dtype=torch.int64))

    def _view(self) -> ImageView:
        try:
            return of_images(self.batcher.loaded.learner.backbone.transform, "a request with files").view()
        except ValueError as error:
            raise HTTPException(415, str(error)) from None

    def close(self) -> None:
        self._readers.shutdown(cancel_futures=True)
