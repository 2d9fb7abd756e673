"""The contract of a method that is built on another one."""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor

from lamella.backbones import Backbone
from lamella.data.samples import Samples
from lamella.memory.signatures import Signature
from lamella.memory.subspace import Subspace
from lamella.methods.method import Method

__all__ = ["MethodOnBase"]


class MethodOnBase(Method):
    """A method that is built on another one, which learns as it would alone: a part such as alignment, or DLC.

    It passes on what it does not say itself, and says what it adds, so that the costs of both can be told apart.

    Args:
        base: The method beneath, with its own backbone.
        seed: The number from which all random draws are made.

    Attributes:
        own_calls: The first words of the names of its own calls of `fit`; all other calls are the base's.
        own_adapters: Names of the adapters that it puts into the base's backbone.
        reads_features: Whether it takes only features from the base, so that the base's classifier is not needed.
    """

    base: Method
    own_calls: tuple[str, ...] = ()
    own_adapters: tuple[str, ...] = ()
    reads_features: bool = False

    def __init__(self, base: Method, seed: int) -> None:
        super().__init__()
        self.base, self.seed = base, seed
        self.routed = self.routed or base.routed
        self.widens = self.widens or base.widens
        self.changes_backbone = self.changes_backbone or base.changes_backbone
        self.merges = self.merges or base.merges
        self.sites, self.free_rank, self.most_tasks = base.sites, base.free_rank, base.most_tasks

    @property
    def backbone(self) -> Backbone:
        return self.base.backbone

    @property
    def classes(self) -> tuple[int, ...]:
        return self.base.classes

    @contextmanager
    def base_alone(self) -> Generator[Method]:
        """Within this context the base computes what it would compute without this method; that is the usual case.

        A method that changes what the base computes overrides this. Nothing may learn within the context.
        """
        yield self.base

    def losses(self, x: Samples) -> Tensor:
        return self.base.losses(x)

    def acting(self, x: Samples) -> AbstractContextManager[None]:
        return self.base.acting(x)

    def features(self, x: Samples) -> Tensor:
        """(n, d) features of the base."""
        return self.base.features(x)

    def what_more_images_do(self) -> str:
        return self.base.what_more_images_do()

    def adapters_of(self, task: int) -> tuple[str, ...]:
        return self.base.adapters_of(task)

    def rows_read(self, task: int) -> dict[str, Tensor]:
        return self.base.rows_read(task) | super().rows_read(task)

    def protected(self) -> Mapping[str, Subspace | Signature]:
        return self.base.protected()

    def readouts(self, x: Samples) -> Mapping[str, Tensor]:
        return self.features_and_readouts(x)[1]

    def features_and_readouts(self, x: Samples) -> tuple[Tensor, Mapping[str, Tensor]]:
        features, base = self.base.features_and_readouts(x)
        return features, self.with_own(self._logits(features, x), base)

    def with_own(self, logits: Tensor, readouts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its own logits and the base's readouts, named as readouts of this method."""
        return {"": logits} | {f"base.{name}".rstrip("."): of_base for name, of_base in readouts.items()}
