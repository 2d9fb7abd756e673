"""A method that changes in `after_step` what it does not train, and that holds the branches that `grow` returned.

It is cut off and resumed, stored and loaded, and must end with the same bits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pretended import pretending
from streams import fit_for, learn, stream, tiny_backbone
from torch import Tensor, nn

from lamella.adapters.adapter import grow, using
from lamella.backbones import Backbone
from lamella.common.files import read_tensors, write_tensors
from lamella.common.randomness import generator
from lamella.learner.store.state import learned_state, restore_state
from lamella.methods.shared.heads import Heads, only_columns
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit

TASKS = stream(classes=4, tasks=2)
STEPS = 8  # of one call: two epochs over 16 images
Step = Callable[["SlowAverage"], None]


class SlowAverage(nn.Module):
    """One LoRA for all tasks is trained; its exponential moving average, which nothing trains, answers."""

    def __init__(self, backbone: Backbone, after_step: Step, rank: int = 2) -> None:
        super().__init__()
        self.backbone, self.after_step = backbone, after_step
        self.sites = backbone.sites("key+value")
        self.heads = Heads(backbone.width)
        self.fast = grow(self.sites, "fast", rank, generator=generator(0, "lora"))
        self.slow = grow(self.sites, "slow", rank, generator=generator(0, "lora"))

    def factors(self, name: str) -> list[nn.Parameter]:
        return [f for branch in getattr(self, name) for f in (branch.A, branch.B)]

    def predict(self, x: Tensor, task: tuple[int, ...] | None = None) -> Tensor:
        with using(self.sites, ["slow"]):
            return only_columns(self.heads(self.backbone(x)), self.heads.classes, task)

    def learn(self, task: Any, fit: Fit) -> None:
        self.eval()
        head = self.heads.grow(task.classes, generator(0, "head", len(self.heads)))

        def loss(x: Tensor, y: Tensor) -> Tensor:
            with using(self.sites, ["fast"]):
                return F.cross_entropy(head(self.backbone(x)), head.columns(y))

        trained = [*self.factors("fast"), *head.parameters()]
        fit(task.train, loss, trained, epochs=2, lr=0.01, batch_size=4, after_step=lambda: self.after_step(self))


def average_through_data(method: SlowAverage) -> None:
    for fast, slow in zip(method.factors("fast"), method.factors("slow"), strict=True):
        slow.data.lerp_(fast.data, 0.1)


@torch.no_grad()
def average_in_place(method: SlowAverage) -> None:
    for fast, slow in zip(method.factors("fast"), method.factors("slow"), strict=True):
        slow.lerp_(fast, 0.1)


def average_into_new_memory(method: SlowAverage) -> None:
    for fast, slow in zip(method.factors("fast"), method.factors("slow"), strict=True):
        slow.data = torch.lerp(slow.data, fast.data, 0.1)


def shrink_a_frozen_weight(method: SlowAverage) -> None:
    method.backbone.model.get_parameter("blocks.0.mlp.fc1.weight").data.mul_(0.9)


AFTER: dict[str, Step] = {
    "data": average_through_data,
    "in place": average_in_place,
    "new memory": average_into_new_memory,
    "frozen weight": shrink_a_frozen_weight,
}


def new(after_step: Step, **options: Any) -> SlowAverage:
    return SlowAverage(tiny_backbone(), after_step, **options)


def state(method: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in method.state_dict().items()}


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


class Cut(BaseException):
    """Stands for a process that ends in the middle of a step."""


def cut_after(step: int, after_step: Step) -> Step:
    """The checkpoint of this step is still written; that of the next one is not."""
    done = 0

    def counted(method: SlowAverage) -> None:
        nonlocal done
        if done == step:
            raise Cut
        done += 1
        after_step(method)

    return counted


def resumed(after_step: Step, folder: Path, step: int, between: Callable[[], object] = lambda: None) -> SlowAverage:
    """Learns a task in two processes; what happens `between` them happens to the files."""
    with pytest.raises(Cut):
        learn_first(new(cut_after(step, after_step)), folder)
    between()
    return learn_first(new(after_step), folder)


def learn_first(method: SlowAverage, folder: Path | None = None) -> SlowAverage:
    checkpoints = None if folder is None else Checkpoints(folder, 0.0)
    return learn(method, 0, TASKS[0], fit_for(method, checkpoints=checkpoints))


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("after_step", AFTER.values(), ids=AFTER.keys())
def test_what_is_changed_without_being_trained_survives_a_kill(after_step: Step, step: int, tmp_path: Path) -> None:
    untouched, whole = state(new(after_step)), learn_first(new(after_step))
    moved = [name for name, tensor in untouched.items() if not torch.equal(tensor, state(whole)[name])]
    assert any(".slow." in name or "fc1" in name for name in moved), "or the test would prove nothing"
    assert different(state(whole), state(resumed(after_step, tmp_path, step))) == []


def test_it_survives_a_kill_on_an_accelerator(tmp_path: Path) -> None:
    with pretending():
        whole = state(learn_first(new(average_in_place)))
        assert different(whole, state(resumed(average_in_place, tmp_path, 5))) == []


def test_a_finished_call_is_restored_with_what_it_changed_without_training(tmp_path: Path) -> None:
    whole = learn_first(new(average_through_data), tmp_path)
    never = new(lambda _: pytest.fail("the call ran again"))
    assert different(state(whole), state(learn_first(never, tmp_path))) == []


def test_only_what_changed_is_filed(tmp_path: Path) -> None:
    learn_first(new(average_through_data), tmp_path / "average")
    learn_first(new(lambda _: None), tmp_path / "nothing")
    filed, plain = (
        read_tensors(tmp_path / name / "task-0" / "train.safetensors")[0] for name in ("average", "nothing")
    )
    assert not [name for name in plain if name.startswith("untrained.")]
    more = filed.keys() - plain.keys()
    assert more == {f"untrained.{n}" for n, _ in new(average_through_data).named_parameters() if ".slow." in n}


def test_a_file_of_an_older_version_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "task-0" / "train.safetensors"

    def as_it_was_written() -> None:
        tensors, position = read_tensors(file)
        write_tensors(file, {k: t for k, t in tensors.items() if not k.startswith("untrained.")}, position)

    nothing: Step = lambda _: None  # noqa: E731
    whole = state(learn_first(new(nothing)))
    assert different(whole, state(resumed(nothing, tmp_path / "a", 5))) == []
    found = state(resumed(average_through_data, tmp_path, 5, as_it_was_written))
    assert {name.split(".branches.")[1][:4] for name in different(whole, found) if ".branches." in name} == {"slow"}


@torch.no_grad()
def add_a_parameter(method: SlowAverage) -> None:
    method.extra = nn.Parameter(torch.zeros(2), requires_grad=False)


def reshape_a_parameter(method: SlowAverage) -> None:
    method.slow[0].A = nn.Parameter(torch.zeros(7, 64), requires_grad=False)


def remove_a_parameter(method: SlowAverage) -> None:
    method.backbone.model.norm.bias = None


@pytest.mark.parametrize(
    ("after_step", "name"),
    [(add_a_parameter, "extra"), (reshape_a_parameter, r".*\.slow\.0\.A"), (remove_a_parameter, r".*\.norm\.bias")],
)
def test_what_no_checkpoint_can_restore_is_refused_by_name(after_step: Step, name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=rf"parameter '{name}' was added, removed or given another shape"):
        learn_first(new(after_step), tmp_path)


def test_a_loaded_method_learns_on_with_the_branches_it_holds() -> None:
    method, loaded = learn_first(new(average_in_place)), new(average_in_place)
    restore_state(loaded, {name: tensor.clone() for name, tensor in learned_state(method).items()})
    for m in (method, loaded):
        learn(m, 1, TASKS[1])
    assert different(state(method), state(loaded)) == []


def test_branches_that_loading_replaced_are_told_when_they_are_trained() -> None:
    method, loaded = learn_first(new(average_in_place)), new(average_in_place, rank=3)
    restore_state(loaded, {name: tensor.clone() for name, tensor in learned_state(method).items()})
    with pytest.raises(RuntimeError, match=r"not part of the method.* take branches by name after loading, with site"):
        learn(loaded, 1, TASKS[1])
