"""Peak memory of a training step, beside what it cannot do without: a frozen forward pass and the activations.

Each form runs in a process of its own, because a peak cannot be taken back. On a CPU it is the process's memory above
what it took once the model was loaded, on a GPU what torch has allocated above that. glibc keeps freed blocks of some
megabytes for later ones and so holds far more than is in use; GIVEN_BACK makes it return them, at a price in time.
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
        batch: images of the forward pass and of a training step, which is the only one of a task with one epoch.

    Raises:
        ValueError: an unknown backbone or method.
        RuntimeError: a form ended without an answer, as where memory runs out.
    """
    setting = (dict(backbone), method, batch, {"precision": precision, "device": device})
    quick_learner(*setting)  # a wrong setting shows here, in one line
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
        raise RuntimeError(f"'{form}' ended without an answer; try smaller batches than {setting[2]}") from error
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
    """Bytes that autograd keeps for the backward pass of one training step, the model's own tensors left out."""
    with kept_for_backward(learner.method.state_dict().values()) as kept:
        _train(learner, batch, steps=1)
    return kept()
