"""What the methods trained from scratch share: one training with their own settings, one start, one memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from streams import Spy, build, fit_for, learn, stream, tiny_residual_backbone

from lamella.common.randomness import generator
from lamella.learner.store.state import learned_state, restore_state
from lamella.methods.shared.classifier import start_draws, widened
from lamella.methods.shared.heads import Heads
from lamella.training.checkpoints import Checkpoints

SCRATCH = ("replay", "icarl", "wa", "lwf", "der", "memo")
D = 16  # the tiny residual network's width


def make(name: str, **options: Any) -> Any:
    return build(name, backbone=tiny_residual_backbone(), **options)


@pytest.mark.parametrize("name", SCRATCH)
def test_every_setting_reaches_the_training_and_the_first_task_has_its_own_epochs(name: str) -> None:
    given = {"lr": 0.02, "batch_size": 5, "optimizer": "sgd", "momentum": 0.3, "weight_decay": 0.07}
    method = make(name, **given, epochs=2, first_epochs=1, milestones=(0.5,))
    for number, epochs in enumerate((1, 2)):
        learn(method, number, stream()[number], spy := Spy(method))
        assert {key: spy.options[key] for key in given} == given
        assert spy.options["epochs"] == epochs
        assert (spy.options["schedule"], spy.options["milestones"]) == ("milestones", (0.5,))
        assert not any(module.training for module in method.modules())


@pytest.mark.parametrize("name", [name for name in SCRATCH if name != "lwf"])
def test_features_are_computed_for_exemplars_alone(name: str) -> None:
    calls = {}
    for memory in (0, 6):
        method = make(name, memory=memory, epochs=1)
        fit = fit_for(method)
        learn(method, 0, stream()[0], fit)
        calls[memory] = list(fit.seconds)
        assert len(method.exemplars) == memory
    assert calls == {0: ["train"], 6: ["train", "herding"] + ["means"] * (name == "icarl")}


@pytest.mark.parametrize("name", SCRATCH)
@pytest.mark.parametrize("start", ["uniform", "zero"])
def test_new_rows_start_as_asked_also_after_a_restart(name: str, start: str) -> None:
    method, found = make(name, seed=3, head_start=start, epochs=1), []
    learn(method, 0, stream()[0])
    again = make(name, seed=3, head_start=start, epochs=1)
    restore_state(again, learned_state(method))
    learn(again, 1, stream()[1], Spy(again, lambda *_: found.append(again.heads[1].weight.clone())))
    width = 2 * D if name in ("der", "memo") else D
    drawn = torch.empty(2, width + 1).uniform_(-(width**-0.5), width**-0.5, generator=generator(3, "head", 1))
    assert torch.equal(found[0], drawn[:, :-1] if start == "uniform" else torch.zeros(2, width))


@pytest.mark.parametrize("name", ["der", "memo"])
@pytest.mark.parametrize("start", ["uniform", "zero"])
def test_new_columns_and_the_auxiliary_classifier_start_as_asked(name: str, start: str) -> None:
    method, found = learn(make(name, head_start=start, epochs=1), 0, stream()[0]), []
    rows = method.heads[0].weight.clone()

    def look(loss: Any, data: Any, params: list[Any]) -> None:
        assert torch.equal(method.heads[0].weight[:, :D], rows)
        found.extend([method.heads[0].weight[:, D:].clone(), params[-2].clone()])

    learn(method, 1, stream()[1], Spy(method, look))
    columns, auxiliary = found
    assert (columns.shape, auxiliary.shape) == ((2, D), (3, D))
    assert columns.any() == auxiliary.any() == (start == "uniform")


def test_a_widened_classifier_goes_on_as_it_started() -> None:
    uniform, zero = Heads(3, "uniform", seed=5), Heads(3)
    for heads in (uniform, zero):
        heads.grow((0, 1))
    wide = widened(uniform, 5)
    assert not wide[0].weight[:, 3:].any()  # no generator, no draw
    drawn = torch.empty(1, 6).uniform_(-(5**-0.5), 5**-0.5, generator=generator(5, "head", 1))
    assert torch.equal(wide.grow((2,)).weight, drawn[:, :-1])
    assert not widened(zero, 5, generator(0, "columns")).grow((2,)).weight.any()


def test_draws_of_a_start_have_names() -> None:
    draws = start_draws(Heads(3, "uniform", seed=5), "columns", 2)
    assert draws is not None
    assert torch.equal(torch.rand(4, generator=draws), torch.rand(4, generator=generator(5, "columns", 2)))
    assert start_draws(Heads(3), "columns", 2) is None
    assert start_draws(Heads(3, "kaiming", seed=5), "columns", 2) is not None


def test_new_columns_of_kaiming_heads_are_as_wide_as_their_rows() -> None:
    """The bound of a start is that of the whole new width: sqrt(3 / 200), and biases stay."""
    heads = Heads(100, "kaiming", seed=5)
    old = heads.grow(tuple(range(40)))
    old.bias.data.fill_(0.25)
    wide = widened(heads, 200, generator(0, "columns"))
    assert torch.equal(wide[0].weight[:, :100], old.weight)
    assert torch.equal(wide[0].bias, old.bias)
    bound = (3 / 200) ** 0.5
    for new in (wide[0].weight[:, 100:], wide.grow((40, 41)).weight):
        assert 0.97 * bound < float(new.abs().max()) <= bound


# killed and resumed --------------------------------------------------------------------------------------------------


class Cut(BaseException):
    """Stands for a process that ends in the middle of a task."""


class Dying(Checkpoints):
    """Checkpoints after every step, with which the process dies once a call of this name is filed."""

    def __init__(self, folder: Path, call: str) -> None:
        super().__init__(folder, 0.0)
        self.call, self.filed = call, {}

    def save(self, task: str, call: str, tensors: Any, position: Any) -> None:
        super().save(task, call, tensors, position)
        self.filed.setdefault(call, set()).update(tensors)
        if call == self.call:
            raise Cut


class Rounding(Spy):
    """A fit on a machine that rounds otherwise, very coarsely: what was trained ends a little beside the values."""

    @torch.no_grad()
    def __call__(self, *args: Any, **options: Any) -> list[float]:
        with torch.enable_grad():
            losses = self.fit(*args, **options)
        for weight in self.method.backbone.model.parameters():
            weight += 0.1 * weight.abs().mean() * torch.randn(weight.shape, generator=generator(0, "rounding"))
        return losses

    def __init__(self, method: Any, checkpoints: Checkpoints) -> None:
        super().__init__(method)
        self.method, self.fit = method, fit_for(method, checkpoints=checkpoints)


@pytest.mark.parametrize(
    ("name", "killed_in"),
    [("replay", "herding"), ("icarl", "herding"), ("wa", "herding"), ("der", "herding"), ("memo", "herding"),
     ("dlc", "plugin")],
)  # fmt: skip
def test_a_resumed_task_chooses_the_exemplars_it_had_chosen(name: str, killed_in: str, tmp_path: Path) -> None:
    def taught(fit: Any = None) -> tuple[str, ...]:
        method = make(name, epochs=1)
        learn(method, 0, stream()[0], fit(method) if fit else None)
        return (method.base or method).exemplars.keys

    chosen, elsewhere = taught(), taught(lambda m: Rounding(m, Checkpoints(tmp_path / "elsewhere")))
    assert elsewhere != chosen  # by its own features that machine would choose others
    with pytest.raises(Cut):
        taught(lambda m: fit_for(m, checkpoints=Dying(tmp_path / "here", killed_in)))
    assert taught(lambda m: Rounding(m, Checkpoints(tmp_path / "here"))) == chosen


@pytest.mark.parametrize("name", ["replay", "dlc"])
def test_checkpoints_of_a_running_task_do_not_repeat_the_images_of_the_memory(name: str, tmp_path: Path) -> None:
    method, checkpoints = make(name, epochs=1), Dying(tmp_path, "never")
    for number in range(2):
        learn(method, number, stream()[number], fit_for(method, checkpoints=checkpoints))
    calls = {"train", "plugin"} if name == "dlc" else {"train"}
    assert checkpoints.filed.keys() == calls | {"herding"}
    for call in calls:
        buffers = {key for key in checkpoints.filed[call] if key.startswith("buffer.")}
        expected = {f"buffer.{key}" for key, _ in method.named_buffers() if "exemplars." not in key}
        assert any("running_mean" in key for key in buffers)
        assert buffers <= expected
