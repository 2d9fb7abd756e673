"""A checksum tells every change of a tensor's content, on the CPU and on a (pretended) accelerator."""

from collections.abc import Callable, Generator

import pytest
import torch
from pretended import DEVICE, pretending
from torch import Tensor

from lamella.common.checksums import checksums, digest

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


@pytest.fixture(params=["cpu", "accelerator"])
def place(request: pytest.FixtureRequest) -> Generator[torch.device]:
    if request.param == "cpu":
        yield torch.device("cpu")
    else:
        with pretending():
            yield DEVICE


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one(tensor: Tensor, place: torch.device) -> int:
    return checksums([tensor.to(place)])[0]


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "halved": lambda x: x * 0.5,
    "doubled": lambda x: x * 2,
    "negated": lambda x: -x,
    "one sign": lambda x: x * torch.ones_like(x).index_fill(0, torch.tensor([7]), -1.0),
    "two signs": lambda x: x * torch.ones_like(x).index_fill(0, torch.tensor([3, 7]), -1.0),
    "the last bit of one number": lambda x: torch.cat([x[:5], torch.nextafter(x[5:6], x[5:6] + 1), x[6:]]),
    "moved by one": lambda x: x.roll(1),
    "backwards": lambda x: x.flip(0),
    "two exchanged": lambda x: x[torch.tensor([1, 0, *range(2, len(x))])],
    "columns exchanged": lambda x: x.view(6, -1)[:, torch.arange(9, -1, -1)].reshape(-1),
    "averaged": lambda x: x.lerp(torch.ones_like(x), 1e-3),
    "shorter by a zero": lambda x: x[:-1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_told(change: Callable[[Tensor], Tensor], place: torch.device) -> None:
    x = draw(60)
    assert one(change(x), place) != one(x, place) == one(x.clone(), place)


def test_permutations_and_other_small_whole_numbers_are_told(place: torch.device) -> None:
    """Changes that keep the sum, the sums of rows and columns, and the sum of numbers times their places."""
    eye, numbers = torch.eye(4), torch.tensor([1, 2, 1, 0])
    several = [eye, eye.flip(0), eye[[1, 0, 3, 2]], eye[[1, 2, 3, 0]], numbers, torch.tensor([2, 0, 2, 0]), numbers + 1]
    assert len(set(checksums([t.to(place) for t in several]))) == len(several)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_numbers_of_any_type_are_read(dtype: torch.dtype, place: torch.device) -> None:
    x = (10 * draw(3, 5)).clamp_min(0).to(dtype)
    other = x.clone()
    other[1, 2] = 1 if x[1, 2] == 0 else 0
    assert one(other, place) != one(x, place)


def test_any_shape_and_strides_are_read_in_the_order_of_the_elements(place: torch.device) -> None:
    x = draw(4, 3, 2, 2)
    assert one(x.to(memory_format=torch.channels_last), place) == one(x, place) == one(x.view(-1), place)
    assert one(x.transpose(0, 1), place) != one(x, place)
    assert len(set(checksums([torch.tensor(t, device=place) for t in (1.0, 2.0)]))) == 2
    assert checksums([torch.zeros(0, device=place), torch.zeros(0, 3, device=place)]) == [0, 0]


def test_a_write_through_data_is_told_and_gradients_do_not_matter(place: torch.device) -> None:
    x = torch.nn.Parameter(draw(8).to(place))
    before = checksums([x])
    version = x._version
    x.data.mul_(1.5)
    assert x._version == version, "torch does not count it"
    assert checksums([x]) != before
    assert checksums([x.detach()]) == checksums([x])


def test_tensors_on_two_devices_keep_their_order() -> None:
    x, y = draw(5), draw(5, seed=1)
    with pretending():
        there = y.to(DEVICE)
        assert checksums([x, there, y]) == [*checksums([x]), *checksums([there]), *checksums([y])]
    assert checksums([]) == []


def test_one_number_that_was_cut_from_a_row_has_the_checksum_of_the_number() -> None:
    cut = torch.full((1, 129), 0.5)[:, -1].contiguous()  # torch leaves the stride of the row to it
    assert cut.stride() == (129,)
    assert checksums([cut]) == checksums([torch.tensor([0.5])])


def test_a_digest_is_of_the_numbers_whatever_their_strides() -> None:
    """A single number that was cut from a column keeps the column's stride, and counts as contiguous all the same."""
    x = draw(12).view(3, 4)
    for view in (x[:, 1], x[:, 1][:1], x[:1, 1:2], x.T, x[0, 0], x[:0], x[:1, :1].expand(2, 2)):
        assert digest(view) == digest(view.clone(memory_format=torch.contiguous_format))
    assert digest(x) != digest(x.T) != digest(x.reshape(-1))
