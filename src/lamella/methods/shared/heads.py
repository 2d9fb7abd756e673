"""Growing classifiers: one linear head for each task, with any number of classes; classes may come back."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lamella.common.checks import check_one_of
from lamella.common.randomness import generator as named_generator
from lamella.training.recipe import HEAD_STARTS

__all__ = ["OTHER_TASK_PENALTY", "Head", "Heads", "cosine_scores", "linear_layer", "only_columns"]

OTHER_TASK_PENALTY = 1e4
"""How far excluded classes fall below all others: large, but finite, so that they keep their order."""


class Head(nn.Module):
    """A linear classifier of one task's classes.

    Args:
        width: d, the number of features.
        classes: the global class ids of the rows.
        generator: draws the initial numbers; they are zero without it.
        start: "kaiming", or any other start for the uniform one; see `Heads`.

    Attributes:
        weight: (classes, d).
        bias: (classes,).
        classes: the global class ids of the rows.
        ids: the same as a tensor, (classes,) int64, on the device of the head.
    """

    ids: Tensor

    def __init__(
        self, width: int, classes: Sequence[int], generator: torch.Generator | None = None, start: str = "uniform"
    ) -> None:
        super().__init__()
        values = torch.zeros(len(classes), width + 1)
        if generator is not None:
            values.uniform_(-(width**-0.5), width**-0.5, generator=generator)
        if start == "kaiming":
            values[:, :-1] *= 3**0.5
            values[:, -1] = 0
        self.weight = nn.Parameter(values[:, :-1].contiguous(), requires_grad=False)
        self.bias = nn.Parameter(values[:, -1].contiguous(), requires_grad=False)
        self.classes = tuple(classes)
        self.register_buffer("ids", torch.tensor(self.classes, dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, classes)."""
        return nn.functional.linear(features, self.weight, self.bias)

    def columns(self, labels: Tensor) -> Tensor:
        """Return the column (n,) of each label in this head's output.

        Args:
            labels: (n,) global class ids.

        Raises:
            ValueError: the head does not have a label. On an accelerator the column is -1 instead, which every loss
                refuses.
        """
        return _columns(labels, self.ids, "this head's classes")


class Heads(nn.Module):
    """All heads so far. A class that comes back is scored by the head that learned it last.

    Args:
        width: d, the number of features.
        start: the initial weights of a head: "zero"; "uniform", U(-1, 1) / sqrt(d) for weights and biases, as in
            torch's linear layers; or "kaiming", U(-1, 1) sqrt(3 / d) with biases of 0 (He et al., ICCV 2015, for a
            layer without an activation). If features have a large norm, random weights are noise that a short training
            does not remove.
        seed: the seed of random weights.

    Raises:
        ValueError: the start is unknown.
    """

    here: Tensor

    def __init__(self, width: int, start: str = "zero", seed: int = 0) -> None:
        super().__init__()
        check_one_of("head_start", start, HEAD_STARTS)
        self.width, self.start, self.seed = width, start, seed
        self.heads = nn.ModuleList()
        self.register_buffer("here", torch.zeros(0), persistent=False)  # new heads are put on its device

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, task: int) -> Head:
        return cast(Head, self.heads[task])

    @property
    def classes(self) -> tuple[int, ...]:
        """Global ids in the order of the columns: the order in which classes were first learned."""
        return tuple(dict.fromkeys(self._rows))

    @property
    def _rows(self) -> list[int]:
        """The class of each row of all heads; a class that came back has several rows."""
        return [i for head in self.heads for i in cast(Head, head).classes]

    def grow(self, classes: Sequence[int], generator: torch.Generator | None = None) -> Head:
        """Add a head on the device of the others.

        Args:
            classes: the global ids of its classes.
            generator: draws the initial weights in place of the generator that this head's number has; a head that
                would start from zero then has the uniform start.

        Raises:
            ValueError: there are no classes, or one is there twice.
        """
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"a head needs distinct classes, got {list(classes)}")
        if generator is None and self.start != "zero":
            generator = named_generator(self.seed, "head", len(self))
        head = self._new(classes, generator).to(self.here.device)
        self.heads.append(head)
        return head

    def _new(self, classes: Sequence[int], generator: torch.Generator | None = None) -> Head:
        return Head(self.width, classes, generator, self.start)

    def drop(self, task: int) -> None:
        """Remove a task's head; the numbers of later heads fall by one."""
        self.heads = nn.ModuleList(head for number, head in enumerate(self.heads) if number != task)

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, len(classes)), the logit of each class from the last head that has it."""
        logits = torch.cat([head(features) for head in self.heads], dim=1)
        position = {c: i for i, c in enumerate(self._rows)}
        return logits if len(position) == logits.shape[1] else logits[:, [position[c] for c in self.classes]]

    def columns(self, labels: Tensor) -> Tensor:
        """Return the column (n,) of each label in the output of all heads side by side.

        Args:
            labels: (n,) global class ids.

        Raises:
            ValueError: no head has a label. On an accelerator the column is -1 instead, which every loss refuses.
        """
        came_back = len(self.classes) < len(self._rows)
        rows = torch.cat([cast(Head, head).ids for head in self.heads])
        ids = torch.tensor(self.classes, device=labels.device) if came_back else rows
        return _columns(labels, ids, "the classes of these heads,")

    def as_linear(self) -> nn.Linear:
        """Return all heads as one linear layer, with rows in the order of `classes`."""
        every = [cast(Head, head) for head in self.heads]
        row = {i: (head, k) for head in every for k, i in enumerate(head.classes)}  # the last head that has a class
        chosen = [row[i] for i in self.classes]
        return linear_layer(
            torch.stack([head.weight[k] for head, k in chosen]), torch.stack([head.bias[k] for head, k in chosen])
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        numbers = {int(k[len(prefix) :].split(".")[1]) for k in state_dict if k.startswith(prefix + "heads.")}
        ids = [state_dict[f"{prefix}heads.{i}.ids"].tolist() for i in sorted(numbers)]
        self.heads = nn.ModuleList(self._new(c) for c in ids).to(self.here.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _columns(labels: Tensor, ids: Tensor, what: str) -> Tensor:
    """Return the position (n,) of each label (n,) in `ids` (c,); `what` names the ids in the error message."""
    match = labels[:, None] == ids
    known = match.any(1)
    # This is checked on the CPU only. A training step must not wait for an accelerator; there the loss refuses -1.
    if labels.device.type == "cpu" and not known.all():
        strangers = sorted(set(labels[~known].tolist()))
        raise ValueError(f"labels {strangers} are not among {what} {ids.tolist()}")
    return torch.where(known, match.long().argmax(1), -1)


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return the linear layer with this weight (classes, d) and bias (classes,), in float32 on the CPU."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    return layer


def only_columns(logits: Tensor, classes: Sequence[int], allowed: Sequence[int] | None) -> Tensor:
    """Exclude every class that is not allowed, by a large finite penalty.

    Args:
        logits: (n, len(classes)).
        classes: the global class ids of the columns.
        allowed: the global class ids that may be chosen, for a test that names the task; None allows all.
    """
    if allowed is None:
        return logits
    able = set(allowed)
    ruled_out = torch.tensor([c not in able for c in classes], device=logits.device)
    # The differences of discriminant scores can exceed any constant.
    spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
    return logits - (OTHER_TASK_PENALTY + spread) * ruled_out


def cosine_scores(features: Tensor, means: Tensor) -> Tensor:
    """Return the cosines (n, c), -1..1, of features (n, d) with class means (c, d), at least in float32."""
    unit = nn.functional.normalize
    wide = torch.promote_types(features.dtype, torch.float32)
    # Autocast would round to bfloat16, whose steps near 1 exceed the differences between the cosines of two classes.
    with torch.autocast(features.device.type, enabled=False):
        return unit(features.to(wide), dim=1) @ unit(means.to(wide), dim=1).T
