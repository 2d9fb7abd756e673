"""On an accelerator nothing waits: neither a training step nor a prediction asks the device for a number.

The device is pretended (torch's fake tensors): they have shapes and a place, mixing places raises, and so does asking
for a value.
"""

from functools import partial
from typing import Any

import pytest
import torch
from streams import Spy, build_shallow, learn, often, stream
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lamella.data.images import TensorSet
from lamella.memory.resizable import Resizable
from lamella.methods import METHODS, WHOLE_STREAM
from lamella.methods.parts.align import Aligned
from lamella.methods.parts.calibrate import Calibrated
from lamella.methods.shared.heads import Heads

TASKS = stream(classes=6, tasks=3)
EVERY = sorted(set(METHODS) - set(WHOLE_STREAM))
WITH_MORE = {"icarl", "lwf", "wa", "der", "memo", "ranpac"}
"""Their loss has tensors beside the method's: a frozen copy of the network, or a head that is thrown away."""


class Reached(Exception):
    """The last task is about to be trained, and its loss has been looked at."""


def sent_to_gpu(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every tensor of the module by a pretended one, on a pretended GPU."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = pretended(tensor, mode)
        if isinstance(part, Resizable):  # what it has fetched once, it has
            part.__dict__["_fetched"] = {
                name: (own := getattr(part, name), own._version, numbers)
                for name, (_, _, numbers) in part.__dict__.get("_fetched", {}).items()
            }


def pretended(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    with mode:
        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    return nn.Parameter(fake, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


@pytest.mark.parametrize("name", often(sorted(set(EVERY) - WITH_MORE - {"nearest-mean", "streaming-lda"})))
def test_no_training_loss_waits(name: str) -> None:
    method = build_shallow(name)
    looked: list[torch.Tensor] = []

    def look(loss: Any, data: Any, params: list[Any]) -> None:
        shape = data.x.shape[1:] if isinstance(data, TensorSet) else (3, *[method.backbone.transform.size] * 2)
        mode = FakeTensorMode()
        sent_to_gpu(method, mode)
        with mode:
            looked.append(loss(torch.empty(8, *shape, device="cuda"), torch.empty(8, dtype=torch.int64, device="cuda")))
        raise Reached

    for number in (0, 1):
        learn(method, number, TASKS[number])
    with pytest.raises(Reached):
        learn(method, 2, TASKS[2], Spy(method, look))
    assert [(loss.device.type, loss.ndim) for loss in looked] == [("cuda", 0)]


@pytest.mark.parametrize(
    "parts",
    [(Aligned,), (Calibrated, Aligned), (partial(Aligned, means=2),)],
    ids=["align", "calibrate+align", "several means"],
)
@pytest.mark.parametrize("name", ["inflora", "seq-lora", "linear-probe"])
def test_no_part_waits(name: str, parts: tuple[Any, ...]) -> None:
    method = build_shallow(name)
    for part in parts:
        method = part(method)
    check_prediction(method)


@pytest.mark.parametrize("name", often(EVERY))
def test_no_prediction_waits(name: str) -> None:
    check_prediction(build_shallow(name))


def check_prediction(method: Any) -> None:
    for number in (0, 1):
        learn(method, number, TASKS[number])
    method.eval()
    side = method.backbone.transform.size
    method.predict(torch.zeros(2, 3, side, side))  # what is solved or fetched once may wait
    mode = FakeTensorMode()
    sent_to_gpu(method, mode)
    with mode, torch.no_grad():
        logits = method.predict(torch.empty(4, 3, side, side, device="cuda"))
    assert (logits.device.type, *logits.shape) == ("cuda", 4, len(method.classes))


def test_the_pretended_device_tells_a_wait() -> None:
    heads = Heads(4)
    heads.grow([3, 5])
    mode = FakeTensorMode()
    sent_to_gpu(heads, mode)
    with mode, pytest.raises(Exception, match="_local_scalar_dense"):
        heads[0].ids.tolist()
