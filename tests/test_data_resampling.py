"""Images resampled on a device: what crosses over to it, that nobody waits there, and that the numbers are the CPU's.

Most machines have no GPU. The "meta" device stands for one: its tensors have shapes but no values, so whoever looks at
one fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lamella.data import resampling
from lamella.data.feeding import Feed
from lamella.data.images import ImageSet, PixelArray, TensorSet
from lamella.data.sending import send
from lamella.data.transform import Augmentation, ImageView, InputTransform, augmented_view, plain_view

CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda")
TRANSFORM = InputTransform(40, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop=0.9)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def noise(height: int, width: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


SETS = {
    "small, of one size": [noise(32, 32, i) for i in range(5)],
    "one": [noise(33, 20, 0)],
    "photos of one size": [noise(300, 200, i) for i in range(3)],
    "scans of one size": [noise(60, 600, i) for i in range(3)],
    "of many sizes": [noise(20 + 13 * (i % 7), 200 - 11 * i, i) for i in range(12)],
    "grey, of many sizes": [noise(30 + i, 40, i)[:1].expand(3, -1, -1) for i in range(3)],
}


def views(n: int, device: torch.device) -> dict[str, ImageView]:
    draws = torch.Generator().manual_seed(5)
    return {
        "plain": plain_view(TRANSFORM, device),
        "augmented": augmented_view(TRANSFORM, Augmentation(scale=(0.1, 1.0)), n, draws, device),
    }


class NoNumbers(TorchFunctionMode):
    """Refuses tensors that are made of Python's numbers on a device; some versions of torch make them in one piece.

    Such a tensor is made on the CPU and copied, and the copy is waited for.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor, torch.scalar_tensor) and not isinstance(args[0], Tensor)
        assert not made or out.device == CPU, "made of numbers: waited for"
        return out


class Crossings(TorchDispatchMode):
    """Notes each copy to the device, and refuses what would hold it up or would fail there."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.bytes: list[int] = []
        self.no_numbers = NoNumbers()

    def __enter__(self) -> "Crossings":
        self.no_numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.no_numbers.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = {t.device.type for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        crosses = func is torch.ops.aten._to_copy.default and inputs == {"cpu"} and kwargs.get("device") == self.device
        out = func(*args, **kwargs)
        if crosses:
            assert kwargs.get("non_blocking"), "a copy that is waited for"
            self.bytes.append(args[0].numel() * out.element_size())
        else:
            assert len(inputs) <= 1, f"{func} of tensors on {inputs}"
        return out


@pytest.mark.parametrize("kind", ["plain", "augmented"])
@pytest.mark.parametrize("images", SETS.values(), ids=SETS.keys())
def test_the_result_lies_on_the_device_and_nothing_there_is_waited_for(images: list[Tensor], kind: str) -> None:
    view = views(len(images), META)[kind]
    with Crossings(META) as crossings:
        out = view(images, torch.arange(len(images)))
    assert out.device == META
    assert out.shape == (len(images), 3, 40, 40)
    assert out.dtype == torch.float32
    nine_numbers = 9 * 8 * (1 if kind == "plain" and len({i.shape for i in images}) == 1 else len(images))
    assert sum(crossings.bytes) == sum(image.numel() for image in images) + nine_numbers  # of each window, float64


def test_images_of_one_size_cross_in_one_copy() -> None:
    images = SETS["small, of one size"]
    view = views(5, META)["augmented"]
    with Crossings(META) as crossings:
        view(images, torch.arange(5))
    assert sorted(crossings.bytes) == [5 * 9 * 8, 5 * 3 * 32 * 32]


@pytest.mark.parametrize(
    "hold_up",
    [
        lambda t: torch.tensor([1.0, 2.0], device=META),
        lambda t: torch.zeros(2).to(META),
        lambda t: t @ torch.zeros(2, 2),
        lambda t: int(t[0, 0]),
        lambda t: t[t > 0],
    ],
)
def test_what_would_hold_a_device_up_is_noticed(hold_up: Any) -> None:
    there = torch.zeros(2, 2, device=META)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Crossings(META):
        hold_up(there)


@contextmanager
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU groups images and multiplies as an accelerator does."""
    with monkeypatch.context() as patched:
        patched.setattr(resampling, "ON_CPU", resampling.ON_ACCELERATOR)
        patched.setattr(resampling, "_blockwise", lambda matrix, multiply, dim: multiply(matrix, slice(None)))
        yield


@pytest.mark.parametrize("kind", ["plain", "augmented"])
@pytest.mark.parametrize("images", SETS.values(), ids=SETS.keys())
def test_the_form_for_accelerators_gives_what_the_form_for_cpus_gives(
    images: list[Tensor], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = torch.arange(len(images))
    expected = views(len(images), CPU)[kind](images, index)
    with as_on_an_accelerator(monkeypatch):
        found = views(len(images), CPU)[kind](images, index)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "augmented"])
def test_matrices_of_some_images_at_a_time_are_those_of_all(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = SETS["of many sizes"]
    expected = views(12, CPU)[kind](images, torch.arange(12))
    with as_on_an_accelerator(monkeypatch):
        monkeypatch.setattr(resampling, "ON_CPU", resampling.ON_CPU._replace(others=5))
        found = views(12, CPU)[kind](images, torch.arange(12))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_tensor_on_the_cpu_stays_the_same_one_there() -> None:
    x = torch.zeros(3)
    assert send(x, CPU) is x


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_a_loop_is_fed_inputs_and_labels_on_its_device(augmentation: Augmentation | None) -> None:
    data = ImageSet(PixelArray(SETS["of many sizes"]), torch.arange(12), [str(i) for i in range(12)])
    feed = Feed(TRANSFORM, seed=0, device=META)
    view = feed.view(12, augmentation, "0", "train", 0)
    assert data.batch(torch.arange(3), view).device == META, "inputs are made there, not sent"
    found = list(feed(data, torch.arange(12), 5, view))
    assert [(x.device, x.shape, y.device, y.shape) for x, y in found] == [
        (META, (n, 3, 40, 40), META, (n,)) for n in (5, 5, 2)
    ]
    assert feed.waited > 0


def test_a_loop_on_the_cpu_is_fed_what_the_set_reads() -> None:
    data = ImageSet(PixelArray(SETS["of many sizes"]), torch.arange(12) % 3, [str(i) for i in range(12)])
    order = torch.tensor([7, 1, 4])
    feed = Feed(TRANSFORM, seed=0, device=CPU)
    ((x, y),) = feed(data, order, 3, feed.view(12, None, "0", "scan", 0))
    assert x.equal(data.batch(order, plain_view(TRANSFORM)))
    assert y.tolist() == [1, 1, 1]


@needs_gpu
@pytest.mark.parametrize("kind", ["plain", "augmented"])
@pytest.mark.parametrize("images", SETS.values(), ids=SETS.keys())
def test_a_gpu_gives_what_the_cpu_gives_and_is_not_waited_for(images: list[Tensor], kind: str) -> None:
    index = torch.arange(len(images))
    expected = views(len(images), CPU)[kind](images, index)
    torch.zeros(1).pin_memory().to(CUDA)  # starting CUDA does wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = views(len(images), CUDA)[kind](images, index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)


@needs_gpu
def test_a_gpu_is_fed_in_order_with_the_training_that_uses_the_batches() -> None:
    n, size = 4096, 64
    data = TensorSet(torch.arange(n)[:, None].expand(n, 1000).contiguous(), torch.arange(n))
    feed = Feed(TRANSFORM, seed=0, device=CUDA)
    sums = [(x.sum(), y.sum()) for x, y in feed(data, torch.arange(n), size, feed.view(n, None, "0"))]
    expected = [sum(range(first, first + size)) for first in range(0, n, size)]
    assert [int(y) for _, y in sums] == expected
    assert [int(x) for x, _ in sums] == [1000 * value for value in expected]
