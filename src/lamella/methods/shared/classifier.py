"""The base class of methods that train whole networks, all heads together, and functions for their classifiers."""

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
"""The common settings of PyCIL's configurations for training from scratch, without epochs and milestones."""


class FromScratch(Method):
    """A method that trains whole networks under one classifier over all classes.

    Args:
        backbone: the feature extractor, of any kind; all of its weights are trained.
        seed: the seed of every random draw.
        training: how a task is trained; stored as `recipe`, because torch's modules have an attribute `training`.
        kept: how many images of old classes are kept, and which; a method that keeps none leaves it out.
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

        The method is in evaluation mode before and after.

        Args:
            fit: the training loop.
            data: the task's images and the kept images.
            loss: the function to minimise.
            weights: the trained weights below the classifier.
            classifier: the trained classifier, which has the recipe's learning rate of heads; `heads` if left out.
            moving: the modules that are in training mode, so that their batch-norm statistics are updated; the whole
                method if left out.
            after_step: called after each step.
        """
        for module in moving or (self,):
            module.train()
        training = self.recipe.of_task(len(self.heads) - 1)
        groups = with_head([{"params": list(weights)}], classifier or self.heads, training)
        fit(data, loss, groups, training, after_step=after_step)
        self.eval()


@torch.no_grad()
def align_new_rows(heads: Heads) -> float:
    """Scale the rows of the last head so that their mean length is that of the rows of all other classes.

    This is weight alignment: Zhao et al., CVPR 2020, arXiv 1911.07053. Biases stay as they are.

    Args:
        heads: the classifier; its last head is changed in place.

    Returns:
        The factor, gamma = mean |w_old| / mean |w_new|; 1 if there are no other classes.
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
    """Return the same heads for wider features: old columns are kept, and new ones are added.

    Heads that are added later start as those of `heads` do.

    Args:
        heads: the classifier; it is not changed.
        width: the new width of the features, at least that of `heads`.
        generator: draws the new columns as heads of this width start; they are zero without it.
    """
    wide = Heads(width, heads.start, heads.seed).to(heads.here.device)
    for head in heads.heads:
        old = cast(Head, head)
        new = Head(width, old.classes, generator, heads.start).to(heads.here.device)
        new.weight.data[:, : heads.width] = old.weight
        new.bias.data.copy_(old.bias)
        wide.heads.append(new)
    return wide


def start_draws(heads: Heads, *names: str | int) -> torch.Generator | None:
    """Return the generator with these names for a random start; None if these heads start from zero."""
    return named_generator(heads.seed, *names) if heads.start != "zero" else None


def new_or_old(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the targets (n,) of an auxiliary classifier, to which all old classes are one.

    Args:
        labels: (n,) global class ids.
        classes: the new classes. The target of a label is 1 + its position among them, and 0 for every other label.
    """
    match = labels[:, None] == torch.tensor(list(classes), device=labels.device)
    return torch.where(match.any(1), match.long().argmax(1) + 1, 0)


def inverse_shares(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Return weights of classes with which each class counts the same; their mean over all images is 1.

    Args:
        labels: (n,) global class ids.
        classes: the classes that weights are wanted for.

    Returns:
        (classes,); 0 for a class without images.

    >>> inverse_shares(torch.tensor([0, 0, 0, 1, 2, 2]), [0, 1, 2, 3]).tolist()
    [0.6666666865348816, 2.0, 1.0, 0.0]
    """
    counts = torch.tensor([int((labels == c).sum()) for c in classes])
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp_min(1)), 0.0)
