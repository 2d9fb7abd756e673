"""The peak memory of a training step, next to its lower bound: a frozen forward pass and the activations.

Each variant runs in its own process, because a peak cannot be reset. The peak is counted above the memory after loading
the model: on a CPU the memory of the process, on a GPU the memory that torch has allocated. glibc keeps freed blocks of
some megabytes and so holds much more memory than is in use. GIVEN_BACK makes it return them, which takes some time.
"""

import multiprocessing
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from lamella.experiments.bench.streams import quick_learner, synthetic_task
from lamella.learner.learner import Learner
from lamella.training.footprint import kept_for_backward, peak_bytes

__all__ = ["AS_KEPT", "kept_activations", "measure_memory"]

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
AS_KEPT = "training, with the blocks that the allocator keeps"


def _forward(learner: Learner, batch: int) -> None:
    fit = learner.fit()
    images = synthetic_task(0, 2 * batch, learner.backbone.transform).train
    fit.scan(images, lambda x, y: learner.backbone(x), batch_size=batch)


def _train(learner: Learner, batch: int, steps: int = 2) -> None:
    learner.learn(synthetic_task(0, steps * batch, learner.backbone.transform))


FORMS: dict[str, Callable[[Learner, int], None]] = {"frozen forward": _forward, "training": _train, AS_KEPT: _train}


def measure_memory(
    backbone: Mapping[str, Any],
    method: str = "inflora",
    *,
    batch: int = 32,
    precision: str = "float32",
    device: str = "auto",
) -> dict[str, int]:
    """Peak bytes of each form, above those of the loaded model; and "activations", what autograd keeps of one step.

    Args:
        backbone: a table of the arguments of `load_backbone`.
        method: the name of the method with its parts.
        batch: the number of images in a batch, at least 2.
        precision: the precision of the training loop.
        device: "cpu", "cuda" or "auto".

    Returns:
        The bytes of each variant. "activations" are the bytes that autograd keeps for the backward pass.

    Raises:
        ValueError: the backbone or the method is unknown.
        RuntimeError: a variant ended without a result, for example because memory ran out.
    """
    setting = (dict(backbone), method, batch, {"precision": precision, "device": device})
    quick_learner(*setting)  # a wrong setting raises here, with a short message
    return {form: _in_a_process(form, setting) for form in (*FORMS, "activations")}


def _in_a_process(form: str, setting: tuple[Any, ...]) -> int:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, form, *setting))
    with _environment({} if form == AS_KEPT else GIVEN_BACK):
        child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RuntimeError(f"'{form}' ended without a result; try smaller batches than {setting[2]}") from error
    finally:
        child.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ.update(before)


def _answer(answers: Any, form: str, backbone: dict[str, Any], method: str, batch: int, fit: dict[str, Any]) -> None:
    learner = quick_learner(backbone, method, batch, fit)
    device = learner.fit().device
    if form == "activations":
        answers.send(kept_activations(learner, batch))
        return
    before = peak_bytes(device)
    FORMS[form](learner, batch)
    answers.send(peak_bytes(device) - before)


def kept_activations(learner: Learner, batch: int) -> int:
    """Count the bytes that autograd keeps for the backward pass of one step, without the model's own tensors."""
    with kept_for_backward(learner.method.state_dict().values()) as kept:
        _train(learner, batch, steps=1)
    return kept()
