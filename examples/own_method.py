"""A method of one's own in one file: a LoRA is trained on and on, and a slow average of it answers.

Each task trains the adapter "fast" and a head of its own. After every step the adapter "slow" moves a small part of the
way towards "fast". Only "slow" acts in predictions, so what old tasks learned fades more slowly than it is overwritten.
Averages of weights as a better predictor: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017,
arXiv 1703.01780.

    lamella run digits method.name=examples/own_method.py:EMALoRA
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella import Backbone, Fit, Learner, LoRA, Method, Task, Training, class_incremental, load_source
from lamella.adapters.adapter import using
from lamella.common.randomness import generator
from lamella.methods.shared.heads import Heads


class EMALoRA(Method):
    """One LoRA for all tasks, and the slow average of it that predicts.

    Args:
        backbone: its layers of the roles in `sites` carry both adapters.
        seed: of all draws.
        lora: the form of the adapters.
        training: of the fast adapter and of a task's head.
        decay: the share of the slow adapter that a step keeps, from 0 to below 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(rank=4),
        training: Training = Training(epochs=5, lr=1e-3, batch_size=32),
        decay: float = 0.95,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be within [0, 1), and 0.95 is usual")
        self.backbone = backbone
        self.seed = seed
        self.lora = lora
        self.recipe = training  # `training` is a word of torch's modules
        self.decay = decay
        self.sites = lora.attach(backbone)
        self.heads = Heads(backbone.width, seed=seed)
        for name in ("fast", "slow"):
            lora.grow(self.sites, name, generator(seed, "lora"))  # the same draws: both start alike

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        head = self.heads.grow(task.classes)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            with using(self.sites, "fast"):
                return F.cross_entropy(head(self.backbone(x)), head.columns(y))

        fit(task.train, loss, [*self._factors("fast"), *head.parameters()], self.recipe, after_step=self._follow)

    def features(self, x: Tensor) -> Tensor:
        """(n, d) features of the slow adapter, from which the heads predict."""
        with using(self.sites, "slow"):
            return self.backbone(x)

    @torch.no_grad()
    def _follow(self) -> None:
        for slow, fast in zip(self._factors("slow"), self._factors("fast"), strict=True):
            slow.lerp_(fast, 1 - self.decay)

    def _factors(self, name: str) -> list[nn.Parameter]:
        """A and B of every branch of an adapter, taken by name, as they are after loading too."""
        return [factor for site in self.sites for branch in site.layer.of(name) for factor in (branch.A, branch.B)]


def main() -> None:
    digits = class_incremental(load_source("digits"), tasks=5)
    learner = Learner.create(backbone="fractal-vit-micro", method=f"{__file__}:EMALoRA")
    for task in digits:
        learner.learn(task)
    test = digits.joined().test(0)
    names = [digits.class_names[label] for label in test.labels.tolist()]
    right = sum(guess.classes[0] == name for guess, name in zip(learner.predict(test, top=1), names, strict=True))
    print(f"own: {right / len(test):.1%} of all ten digits after five tasks")


if __name__ == "__main__":
    main()
