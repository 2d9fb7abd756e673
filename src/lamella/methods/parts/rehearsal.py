"""Rehearsal: a share of the answers of each task is kept, and trained again with those of every later task.

This is the plain remedy against which methods without old data have to stand. With a hundredth or two of the old rows
it is cheap, and it keeps these rows as they are: where that is not allowed, leave it out.

    symbol          here
    D_t             the answers of task t
    R_t             the answers that are kept after task t: R_{t-1} and a random share of D_t
    share           |R_t| - |R_{t-1}| = round(share |D_t|), and one at least where the share is above 0

Task t is trained on D_t and R_{t-1} as one set, in which every row counts alike, by the method beneath.

Sources: Rolnick, Ahuja, Schwarz, Lillicrap & Wayne, "Experience Replay for Continual Learning", NeurIPS 2019, arXiv
1811.11682. With a share of the rows of a language model's old tasks: Scialom, Chakrabarty & Muresan, "Fine-tuned
Language Models are Continual Learners", EMNLP 2022, arXiv 2205.12393.

Departures:
- A step's batch is drawn from the union; the papers choose how much of a batch is old.
- It is for answers. For classes there is `replay`, which trains all weights, and the methods that need no old samples.

Memory: the kept rows, which are part of the model's file and needed for learning alone.
"""

from dataclasses import replace

from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.kept_answers import KeptAnswers
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.shared.objectives import learns_answers
from lamella.training.fit import Fit

__all__ = ["Rehearsed"]


class Rehearsed(MethodOnBase):
    """A method on top of another one, which learns each task together with a few answers of old tasks.

    Args:
        base: a method that learns answers.
        seed: the seed of every random draw.
        share: the share of the answers of each task that is kept, 0..1; 0 keeps none.

    Attributes:
        kept: the answers of old tasks.

    Raises:
        ValueError: the share is no share, or the base learns classes.
    """

    answers = True

    def __init__(self, base: Method, *, seed: int = 0, share: float = 0.02) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share {share} of the answers cannot be kept; it is from 0 (none) to 1 (all)")
        if not learns_answers(base.backbone):
            raise ValueError(
                f"rehearsal keeps answers, and '{base.backbone.name}' is no language model; for classes there is the "
                "method 'replay', or leave rehearsal out"
            )
        super().__init__(base, seed)
        self.share = share
        self.kept = KeptAnswers()

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        self.base.learn(replace(task, train=self.kept.join(task.train)), fit)
        self.kept.keep(task.train, self.share, generator(self.seed, "rehearsal", len(self.kept)))

    def predict(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        return self.base.predict(x, task)
