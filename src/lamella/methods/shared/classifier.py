"""One growing classifier, all heads trained side by side: what the methods share that have one."""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.common.randomness import generator as named_generator
from lamella.memory.exemplars import Exemplars, Kept
from lamella.methods.method import Method
from lamella.methods.shared.heads import Head, Heads
from lamella.methods.shared.own_heads import with_head
from lamella.training.fit import Examples, Fit, Loss
from lamella.training.recipe import Training

__all__ = ["PYCIL", "FromScratch", "align_new_rows", "inverse_shares", "new_or_old", "start_draws", "widened"]


PYCIL = Training(lr=0.1, optimizer="sgd", momentum=0.9, weight_decay=2e-4, schedule="milestones")
"""What PyCIL's configurations for training from scratch have in common; epochs and milestones are each method's own."""


class FromScratch(Method):
    """A method that trains whole networks under one classifier over all classes.

    Args:
        backbone: of any kind; all of it is trained.
        seed: of all draws.
        training: how a task is trained; kept as `recipe`, for torch's modules have a `training` of their own.
        kept: which images of old classes are kept; a method that keeps none leaves it out.
    """

    changes_backbone = True
    exemplars: Exemplars

    def __init__(self, backbone: Backbone, seed: int, training: Training, kept: Kept | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.seed = seed
        self.recipe = training
        self.heads = Heads(backbone.width, training.head_start, seed)
        if kept is not None:
            self.exemplars = kept.none_yet(backbone.transform, seed)

    def train_weights(
        self,
        fit: Fit,
        data: Examples,
        loss: Loss,
        weights: Iterable[Tensor],
        classifier: nn.Module | None = None,
        *,
        moving: Sequence[nn.Module] = (),
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Train weights and the classifier above them; the task's own head is the last of `heads`.

        Args:
            fit: the loop.
            data: the task's images, and those that are kept.
            loss: to be lowered.
            weights: those below the classifier.
            classifier: with the recipe's learning rate of heads; `heads` where left out.
            moving: the modules in training mode, whose batch-norm statistics follow the images as the weights do; all
                of the method's where left out. The method is in evaluation mode before and after.
            after_step: called after each step.
        """
        for module in moving or (self,):
            module.train()
        training = self.recipe.of_task(len(self.heads) - 1)
        groups = with_head(weights, classifier or self.heads, training)
        fit(data, loss, groups, training, after_step=after_step)
        self.eval()


@torch.no_grad()
def align_new_rows(heads: Heads) -> float:
    """Scale the last head's rows so that they are on average as long as the rows of all other classes.

    Weight alignment: Zhao et al., CVPR 2020, arXiv 1911.07053. Biases stay. Without other classes nothing changes.

    Returns:
        The factor, gamma = mean |w_old| / mean |w_new|.
    """
    new = heads[-1]
    every = [cast(Head, head) for head in heads.heads]
    lengths = {c: n for head in every for c, n in zip(head.classes, head.weight.norm(dim=1), strict=True)}
    old = [length for c, length in lengths.items() if c not in new.classes]
    if not old:
        return 1.0
    gamma = torch.stack(old).mean() / new.weight.norm(dim=1).mean()
    new.weight.mul_(gamma)
    return float(gamma)


def widened(heads: Heads, width: int, generator: torch.Generator | None = None) -> Heads:
    """The same heads for features that have gone on growing: old columns are kept, new ones drawn.

    Heads that are added later start as those of `heads` do.

    Args:
        heads: the classifier as it is.
        width: of the features, at least that of `heads`.
        generator: draws the new columns as torch does; they are zero without it.
    """
    wide = Heads(width).to(heads.here.device)
    for head in heads.heads:
        old = cast(Head, head)
        new = wide.grow(old.classes, generator)
        new.weight.data[:, : heads.width] = old.weight
        new.bias.data.copy_(old.bias)
    wide.start, wide.seed = heads.start, heads.seed  # not before: new columns are the generator's, or zero
    return wide


def start_draws(heads: Heads, *names: str | int) -> torch.Generator | None:
    """Draws of a uniform start, filed under these names; None where these heads start from zero."""
    return named_generator(heads.seed, *names) if heads.start == "uniform" else None


def new_or_old(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Targets (n,) of an auxiliary classifier: 1 + position among the new `classes`, and 0 for every other label."""
    match = labels[:, None] == torch.tensor(list(classes), device=labels.device)
    return torch.where(match.any(1), match.long().argmax(1) + 1, 0)


def inverse_shares(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Weights (classes,) with which each class counts the same, 1 on average over images; 0 where one has no image.

    >>> inverse_shares(torch.tensor([0, 0, 0, 1, 2, 2]), [0, 1, 2, 3]).tolist()
    [0.6666666865348816, 2.0, 1.0, 0.0]
    """
    counts = torch.tensor([int((labels == c).sum()) for c in classes])
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp_min(1)), 0.0)
