"""A method of one's own, in one file: adapt to the first task, then one ridge regression over all classes seen.

The idea of first-session adaptation: Panos et al., "First Session Adaptation: A Strong Replay-Free Baseline for
Class-Incremental Learning", ICCV 2023, arXiv 2303.13199. Here a LoRA is trained on the first task and folded into the
weights; from then on features stand still, so class means and one scatter are all that a ridge regression needs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella import METHODS, Backbone, Fit, Learner, LoRA, Method, Task, Training, class_incremental, load_source
from lamella.adapters.adapter import merge
from lamella.common.randomness import generator
from lamella.memory.gaussians import ClassGaussians
from lamella.methods.shared.heads import Heads


class OwnMethod(Method):
    """LoRA on the first task, ridge regression on all.

    Args:
        backbone: its key and value layers are adapted.
        seed: of all draws.
        lora: the branches.
        training: how they are trained, with a head that is thrown away afterwards.
        ridge: as a share of the mean diagonal of the Gram matrix.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(rank=4),
        training: Training = Training(epochs=3, lr=1e-3, batch_size=32),
        ridge: float = 0.01,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.seed = seed
        self.lora = lora
        self.recipe = training
        self.ridge = ridge
        self.sites = lora.attach(backbone)
        self.statistics = ClassGaussians(backbone.width)

    @property
    def classes(self) -> tuple[int, ...]:
        return self.statistics.classes

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        if not self.classes:
            self._adapt(task, fit)
        self.statistics.add(fit.features(task.train, self.features), task.train.labels, task.classes)

    def classify(self, features: Tensor) -> Tensor:
        """(n, classes): f^T (G + k I)^-1 (sums of the features of each class)."""
        s = self.statistics
        sums = s.means * s.counts[:, None]
        gram = s.scatter + sums.T @ s.means
        k = self.ridge * gram.diagonal().mean()
        weight = torch.linalg.solve(gram + k * torch.eye(len(gram)).to(gram), sums.T)
        return features @ weight.float()

    def _adapt(self, task: Task, fit: Fit) -> None:
        branches = self.lora.grow(self.sites, "own", generator(self.seed, "lora"))
        head = Heads(self.backbone.width).grow(task.classes, generator(self.seed, "head")).to(fit.device)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(head(self.features(x)), head.columns(y))

        factors = [factor for branch in branches for factor in (branch.A, branch.B)]
        fit(task.train, loss, [*factors, *head.parameters()], self.recipe)
        merge(self.sites, "own")


METHODS["own"] = OwnMethod


def main() -> None:
    digits = class_incremental(load_source("digits"), tasks=5)
    learner = Learner.create(method="own")
    for task in digits:
        learner.learn(task)
    test = digits.joined().test(0)
    names = [digits.class_names[label] for label in test.labels.tolist()]
    right = sum(guess.classes[0] == name for guess, name in zip(learner.predict(test, top=1), names, strict=True))
    print(f"own: {right / len(test):.1%} of all ten digits after five tasks")


if __name__ == "__main__":
    main()
