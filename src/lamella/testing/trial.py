"""One method under examination, and what several checks need of it."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamella.adapters.branches import adapter_names
from lamella.backbones import Backbone
from lamella.common.files import read_tensors, write_tensors
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.data.transform import Augmentation
from lamella.learner.store.state import learned_state, restore_state
from lamella.methods import Method
from lamella.testing.tiny import CLASSES, MethodCheckError, patterns, tiny_tasks
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit

__all__ = [
    "Killed",
    "KilledAfter",
    "Learned",
    "Trial",
    "difference",
    "learn",
    "learned_tensors",
    "logits",
    "lost_values",
    "restored",
    "scratch_folder",
    "unseen_inputs",
    "unregistered",
]

Values = Mapping[str, Any]


class Learned(NamedTuple):
    """A method after the three tasks of a trial.

    Attributes:
        method: as it is then, in eval mode.
        before: the backbone's tensors before the first task.
        sizes: how many logits there were after each task.
        after_second: its tensors after the second task.
        stored_first: what was stored of it after the first task.
    """

    method: Method
    before: dict[str, Tensor]
    sizes: list[int]
    after_second: dict[str, Tensor]
    stored_first: dict[str, Tensor]


class Trial:
    """A method under examination.

    Args:
        build: (seed) -> the method on a backbone of its own.
    """

    def __init__(self, build: Callable[[int], Method]) -> None:
        self.build = build

    @cached_property
    def noun(self) -> str:
        """What the backbone takes, "image" or "text"."""
        return self.new().backbone.transform.noun

    @cached_property
    def tasks(self) -> list[Task]:
        """Four tasks of two classes each."""
        return tiny_tasks([2, 2, 2, 2], noun=self.noun)

    def new(self, seed: int = 0) -> Method:
        """A method that has learned nothing."""
        method = self.build(seed)
        if not isinstance(method, Method):
            raise MethodCheckError(f"what was built is a {type(method).__name__}; derive its class from lamella.Method")
        if method.backbone is None or not isinstance(method.backbone, Backbone):
            raise MethodCheckError(
                "the method keeps no Backbone in `self.backbone`; keep the one that it is given there"
            )
        return method

    @cached_property
    def learned(self) -> Learned:
        """The method after three tasks; checks leave it as it is."""
        method, sizes = self.new(), list[int]()
        adapter_of = adapter_names(method.backbone.model)
        before = {k: v.clone() for k, v in method.backbone.model.state_dict().items() if not adapter_of(k)}
        stored, states = dict[str, Tensor](), list[dict[str, Tensor]]()
        for number, task in enumerate(self.tasks[:3]):
            learn(method, number, task)
            sizes.append(logits(method).shape[-1])
            stored = stored or learned_tensors(method)
            states.append({name: tensor.clone() for name, tensor in method.state_dict().items()})
        return Learned(method, before, sizes, states[1], stored)


class Killed(BaseException):
    """Stands for a process that ends; no `except Exception` of a method holds it up."""


class KilledAfter(Checkpoints):
    """Checkpoints after every batch, of a process that ends when so many of them are written.

    Args:
        folder: where they are.
        left: how many are written; None for a process that nothing ends.
    """

    def __init__(self, folder: Path, left: int | None) -> None:
        super().__init__(folder, 0.0)
        self.left, self.written = left, 0

    def save(self, task: str, call: str, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        super().save(task, call, tensors, position)
        self.written += 1
        if self.written == self.left:
            raise Killed


def learn(method: Method, number: int, task: Task, checkpoints: Checkpoints | None = None, seed: int = 0) -> Method:
    """Let a method learn task `number` of its life; returns it."""
    transform = method.backbone.transform
    fit = Fit(
        method,
        transform,
        augmentation=Augmentation((0.8, 1.0)) if transform.noun == "image" else None,
        seed=seed,
        device="cpu",
        checkpoints=checkpoints,
    )
    fit.begin(str(number))
    method.learn(task, fit)
    return method


def unseen_inputs(method: Method, *classes: int) -> Samples:
    """Inputs of a sample of each class that no task has, of all eight classes where none is named."""
    transform = method.backbone.transform
    places = torch.tensor(classes or range(CLASSES))
    return patterns(transform.noun, 4, "test").batch(4 * places, transform.view())


def logits(method: Method) -> Tensor:
    """(8, classes) logits of the test inputs."""
    with torch.no_grad():
        return method.eval().predict(unseen_inputs(method))


def learned_tensors(method: nn.Module) -> dict[str, Tensor]:
    """What is stored of a method, once written to a file and read again."""
    with scratch_folder() as folder:
        write_tensors(folder / "state.safetensors", learned_state(method))
        return read_tensors(folder / "state.safetensors")[0]


def restored(trial: Trial, state: Mapping[str, Tensor]) -> Method:
    """A new method with a stored state.

    Raises:
        MethodCheckError: the state does not fit.
    """
    method = trial.new()
    try:
        restore_state(method, state)
    except (ValueError, RuntimeError, KeyError) as error:
        raise MethodCheckError(
            f"what was stored of the method does not load into a newly built one: {error}. Modules and tensors that "
            "learning adds have to be added on loading too: Heads, adapters and ClassGaussians do it by themselves; a "
            "module of your own with buffers that get longer derives from lamella.memory.resizable.Resizable"
        ) from error
    return method


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is there for a moment."""
    with tempfile.TemporaryDirectory(prefix="lamella-check-") as folder:
        yield Path(folder)


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """The name of a tensor that is not alike in two states, and how many there are; "" where all bits are alike."""
    apart = sorted(one.keys() ^ other.keys())
    apart += [name for name in one if name in other and not torch.equal(one[name], other[name])]
    return "" if not apart else f"'{apart[0]}'" + (f" and {len(apart) - 1} more tensors" if len(apart) > 1 else "")


def unregistered(method: Method) -> dict[str, Tensor]:
    """Tensors in plain attributes of a method, which its state_dict does not have, by their places."""
    inside = {id(m) for backbone in _backbones(method) for m in backbone.modules()}
    known = {id(t) for t in (*method.parameters(), *method.buffers())} | {id(m) for m in method.modules()}
    found: dict[str, Tensor] = {}
    for prefix, module in method.named_modules():
        if id(module) not in inside:
            for name, value in _own_attributes(module).items():
                _collect(value, f"{prefix}.{name}".lstrip("."), known, found)
    return found


def lost_values(method: Method, other: Method) -> str:
    """The end of a message that names a plain attribute which is not alike in two methods; "" where there is none."""
    apart = [name for name, value in _plain_values(method).items() if getattr(other, name, None) != value]
    return f". The attribute '{apart[0]}', which is neither a parameter nor a buffer, differs" if apart else ""


def _backbones(method: Method) -> Iterator[Backbone]:
    return (module for module in method.modules() if isinstance(module, Backbone))


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module's author put into it beside parameters, buffers and modules."""
    of_torch = vars(nn.Module()).keys()
    return {name: value for name, value in vars(module).items() if name not in of_torch}


def _collect(value: Any, place: str, known: set[int], found: dict[str, Tensor]) -> None:
    if id(value) in known:
        return
    if isinstance(value, Tensor):
        found[place] = value.detach().clone()
    elif isinstance(value, nn.Module):
        for name, tensor in value.state_dict(keep_vars=True).items():
            _collect(tensor, f"{place}.{name}", known, found)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _collect(inner, f"{place}[{key!r}]", known, found)
    elif isinstance(value, (list, tuple, set)):
        for i, inner in enumerate(value):
            _collect(inner, f"{place}[{i}]", known, found)


def _plain_values(method: Method) -> dict[str, Any]:
    plain = (bool, int, float, str, tuple, list, dict, set, type(None))
    return {name: v for name, v in _own_attributes(method).items() if isinstance(v, plain) and not _has_tensors(v)}


def _has_tensors(value: Any) -> bool:
    found: dict[str, Tensor] = {}
    _collect(value, "", set(), found)
    return bool(found)
