"""What grows restores itself from a file of any length, where it stands; what does not grow keeps its size."""

import pytest
import torch
from torch import Tensor, nn

from lamella.memory.resizable import Resizable


class Notes(Resizable):
    resizable = ("rows", "weight")
    rows: Tensor
    fixed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, 2))
        self.register_buffer("fixed", torch.zeros(3))
        self.weight = nn.Parameter(torch.zeros(1, 2), requires_grad=False)


ROWS = torch.arange(6, dtype=torch.float64).reshape(3, 2)
STATE = {"rows": ROWS, "fixed": torch.ones(3), "weight": 2 * torch.ones(4, 2)}


def test_grown_tensors_come_back_with_their_size_type_and_kind() -> None:
    notes = Notes()
    holder = nn.ModuleDict({"inner": notes})
    holder.load_state_dict({f"inner.{name}": value for name, value in STATE.items()})
    assert torch.equal(notes.rows, ROWS)
    assert notes.rows.dtype == torch.float64
    assert notes.rows is not ROWS
    assert dict(notes.named_parameters()).keys() == {"weight"}
    assert torch.equal(notes.weight, 2 * torch.ones(4, 2))
    assert not notes.weight.requires_grad
    assert [name for name, _ in notes.named_buffers()] == ["rows", "fixed"]


def test_a_shorter_file_makes_them_shorter_again() -> None:
    notes = Notes()
    notes.load_state_dict(STATE)
    notes.load_state_dict(STATE | {"rows": ROWS[:1]})
    assert torch.equal(notes.rows, ROWS[:1])


def test_known_numbers_follow_the_tensor_however_it_changes() -> None:
    notes = Notes()
    notes.load_state_dict(STATE)
    assert notes.known("rows") == tuple(ROWS.tolist())
    notes.rows = ROWS[1:].clone()
    assert notes.known("rows") == tuple(ROWS[1:].tolist())
    notes.rows.copy_(ROWS[:2])  # as a call of `fit` that goes on is restored
    assert notes.known("rows") == tuple(ROWS[:2].tolist())
    with torch.inference_mode():
        notes.rows = ROWS.clone()  # which counts no changes
    assert notes.known("rows") == tuple(ROWS.tolist())


def test_they_stay_on_their_device() -> None:
    notes = Notes().to("meta")
    with pytest.warns(UserWarning, match="meta"):  # torch says that nothing can be copied there
        notes.load_state_dict(STATE)
    assert notes.rows.shape == (3, 2)
    assert {notes.rows.device.type, notes.weight.device.type} == {"meta"}


def test_other_sizes_and_missing_tensors_are_refused_as_ever() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for fixed"):
        Notes().load_state_dict(STATE | {"fixed": torch.ones(4)})
    with pytest.raises(RuntimeError, match=r"Missing key.*rows"):
        Notes().load_state_dict({name: value for name, value in STATE.items() if name != "rows"})
