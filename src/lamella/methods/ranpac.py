"""RanPAC: ridge regression on random non-linear projections of features; nothing is trained after the first task.

McDonnell, Gong, Parvaneh, Abbasnejad & van den Hengel, "RanPAC: Random Projections and Pre-trained Models for Continual
Learning", NeurIPS 2023, arXiv 2307.02251. Authors' code: github.com/RanPAC/RanPAC.

Features are adapted on the first task only, then frozen. From there on everything is a sum over images: h = relu(f W),
G = sum h h^T, Q = sum h y^T with one-hot y, and classes are scored by h^T (G + lambda I)^-1 Q. The sums do not depend
on the order of images, batches or tasks, and a class that comes back adds to its column.

    paper / code    here
    M               projections
    W               projection: standard normal, drawn from the seed
    G, Q            G, Q
    lambda          ridge; else `chosen` from 10^-8 ... 10^8, by squared error on a fifth of the task's training images
    n_c, mu_c, mu   counts, Q / counts, the mean of all h: for `scatter="within"`

As the code has it: the fifth is drawn at random from the current task's images; the value chosen last holds for all
classes; the sums take in all images, without augmentation. So with `ridge=None` a prediction depends on the last task's
choice, and only a given `ridge` makes it independent of the order of tasks.

Departures (from the paper [p], from the code [c]):
- 2000 projections; the paper and the code have 10 000, whose G takes 800 MB in float64, and is stored [p, c].
- The first task trains a LoRA on key and value with the other methods' settings; the paper has AdaptFormer, SSF or VPT,
  the code trains those and a cosine head by SGD at 0.01 with momentum 0.9 and weight decay 5e-4 for 20 epochs on a
  cosine, batches of 48 [p, c]: the settings of the configuration `ranpac-cifar100-10`. `adapt="none"` leaves the
  backbone as it is.
- Sums and solutions are float64, the code's float32; a lambda below the rounding of G (2e-16 times its trace) is raised
  to it [c].
- The candidates come from one eigendecomposition, in the smaller of the two spaces, instead of 17 solutions: the same
  numbers. With fewer than five images there is no fifth, and the value before (1 at first) stays [c].
- `scatter="within"` is ours [p, c]: the linear discriminant on the same projections. From G the part that lies between
  classes is taken out, S = (G - sum n_c mu_c mu_c^T + lambda I) / n, and the score of a class is the logarithm of how
  much likelier h is under N(mu_c, S) than under N(mu, S), (mu_c - mu)^T S^-1 (h - (mu_c + mu) / 2). So the largest
  score is minus half the relative Mahalanobis distance (Ren et al. 2021, arXiv 2106.09022), and says how familiar an
  input is. With few samples a class it is better than the regression (docs/log.md).
- `unit` brings features to length 1, off by default [p, c]. On sentence encoders it makes one ridge fit all.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.random_projections import RandomProjections, best_ridge, check_left, ridge_solution
from lamella.methods.method import Method
from lamella.methods.shared.growing import grow_for_task
from lamella.methods.shared.heads import Heads
from lamella.methods.shared.own_heads import factors, with_head
from lamella.methods.shared.plain_classifier import PlainClassifier
from lamella.methods.shared.refusals import TRAINED_ON_THEM
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training
from lamella.training.variants import check_variants

__all__ = ["RanPAC"]

FEWEST = 5  # samples of a task, for a ridge to be chosen on a fifth of them


class RanPAC(RandomProjections, Method):
    """Random projections of features, and a ridge regression over all classes.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted to the first task.
        seed: the seed of every random draw.
        lora: the form of the branches that are trained on the first task; see `LoRA`.
        training: how these branches and a head are trained on the first task; see `Training`. The head is then removed.
        projections: M, the number of random projections; at least 1. M x M numbers in float64 are stored, 32 MB for
            2000; learning a task of n images needs n x M more.
        ridge: lambda, the strength of the regularisation; above 0. If left out, each task chooses one.
        adapt: how the backbone is adapted: "first-task" (a LoRA is trained on the first task, then frozen) or "none".
        scatter: which scatter is inverted: "all" (of all samples: ridge regression, as in the paper) or "within"
            (within the classes: a linear discriminant, which is better with fewer than about 30 samples a class, and
            needs a `ridge`).
        unit: whether features are brought to length 1 before they are projected, so that one `ridge` suits backbones
            with features of any length. The paper has no such step.

    Raises:
        ValueError: a value is not allowed.
    """

    resizable = ("ids", "Q", "solution", "counts", "offset")

    ids: Tensor
    needs = frozenset({"frozen weight"})
    not_online = ""
    chosen: Tensor
    G: Tensor
    Q: Tensor
    solution: Tensor
    counts: Tensor
    offset: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(),
        training: Training = Training(schedule="inflora-code"),
        projections: int = 2000,
        ridge: float | None = None,
        adapt: str = "first-task",
        scatter: str = "all",
        unit: bool = False,
    ) -> None:
        super().__init__()
        check_one_of("adapt", adapt, ("first-task", "none"))
        check_one_of("scatter", scatter, ("all", "within"))
        if ridge is not None and not ridge > 0:
            raise ValueError(f"ridge {ridge} must be above 0; leave it out to have it chosen")
        if ridge is None and scatter == "within":
            raise ValueError("scatter 'within' needs a ridge, such as 100 with unit=true; only for 'all' one is chosen")
        check_variants(type(self).__name__, self.needs, lora)
        self.backbone, self.seed, self.lora, self.recipe = backbone, seed, lora, training
        self.projections, self.ridge = projections, ridge
        self.adapt, self.scatter, self.unit = adapt, scatter, unit
        self.sites = lora.attach(backbone) if adapt == "first-task" else ()
        if adapt == "first-task":
            self.not_online = (
                "it adapts the network to the first task, for which a stream's first batch is too little; set "
                "method.adapt=none"
            )
        self.draw_projections(backbone.width, projections, generator(seed, "ranpac", "W"), least=1)
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("chosen", torch.ones((), dtype=torch.float64))
        self.register_buffer("G", torch.zeros(projections, projections, dtype=torch.float64))
        for name in ("Q", "solution"):
            self.register_buffer(name, torch.zeros(projections, 0, dtype=torch.float64))
        for name in ("counts", "offset") if scatter == "within" else ():
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    @property
    def classes(self) -> tuple[int, ...]:
        return self.known("ids")

    @property
    def one_weight(self) -> bool:
        return False  # nothing changes after the first task, so that a mean would be what there is

    def classify(self, features: Tensor) -> Tensor:
        """(n, classes) scores: of the regression about 1 for the right class, 0 for the others."""
        scores = self.project(features) @ self.solution + (self.offset if self.scatter == "within" else 0)
        return scores.to(torch.promote_types(features.dtype, torch.float32))

    def project(self, features: Tensor) -> Tensor:
        """Return relu(f W), (n, M) float64, for features f (n, d), which are brought to length 1 first if `unit`."""
        f = features.double()
        return self.projected(F.normalize(f, dim=1) if self.unit else f)

    def plain_classifier(self) -> PlainClassifier:
        bias = self.offset if self.scatter == "within" else None
        return PlainClassifier(self.solution.T, bias, projection=self.projection.T, unit=self.unit)

    def typicality(self, features: Tensor, logits: Tensor) -> Tensor:
        """The largest score: high for a sample like many that were learned, low for one like none."""
        return logits.max(1).values

    @property
    def features_stay(self) -> bool:
        """They change in the first task only."""
        return True

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        if self.adapt == "first-task" and not self.classes:
            self._adapt(task, fit)
        h = self.project(fit.features(task.train, self.features))
        self.ids = torch.tensor(list(dict.fromkeys((*self.classes, *task.classes))), device=h.device)
        y = self._one_hot(task.train.labels)
        self.chosen.fill_(self._chosen(h, y, task.id))
        self.G = self.G + h.T @ h
        self.Q = F.pad(self.Q, (0, y.shape[1] - self.Q.shape[1])) + h.T @ y
        if self.scatter == "within":
            self.counts = F.pad(self.counts, (0, y.shape[1] - len(self.counts))) + y.sum(0)
        self._solve()

    def traces_of(self, number: int, counts: Sequence[int]) -> str:
        if self.adapt == "first-task" and number == 0:
            return TRAINED_ON_THEM
        chosen_on = max((i for i, n in enumerate(counts) if n >= FEWEST), default=-1)
        chosen = self.ridge is None and number == chosen_on
        return "the ridge was chosen on samples of this task (method.ridge gives one that is not)" if chosen else ""

    def take_out(self, features: Tensor, labels: Tensor, right: Tensor | None = None, gone: Sequence[int] = ()) -> None:
        h = self.project(features)
        y, z = self._one_hot(labels), torch.zeros_like(h[:, :1]) if right is None else self._one_hot(right)
        Q = self.Q - h.T @ (y - z)
        check_left(self.Q, Q)
        kept = (~torch.isin(self.ids, self.ids.new_tensor(gone))).nonzero()[:, 0]
        self.G = self.G - h.T @ h if right is None else self.G
        self.ids, self.Q = self.ids[kept], Q[:, kept]
        if self.scatter == "within":
            self.counts = (self.counts - (y - z).sum(0))[kept]
        self._solve()

    def _one_hot(self, labels: Tensor) -> Tensor:
        """Return (n, classes) float64, for global class ids (n,)."""
        return (labels.to(self.ids.device)[:, None] == self.ids).to(self.Q)

    def _solve(self) -> None:
        if self.scatter == "within":
            self._discriminate()
        else:
            self.solution = self._solved(self.G, self.Q)

    def _discriminate(self) -> None:
        """Set solution and offset to the discriminant of each class against the mean of all samples."""
        means, total = self.Q / self.counts, self.counts.sum()
        mean = self.Q.sum(1, keepdim=True) / total
        self.solution = self._solved(self.G - self.Q @ means.T, total * (means - mean))
        self.offset = -(self.solution * (means + mean)).sum(0) / 2

    def _solved(self, scatter: Tensor, targets: Tensor) -> Tensor:
        """Return (scatter + lambda I)^-1 targets."""
        rounding = torch.finfo(self.G.dtype).eps * self.G.trace()
        return ridge_solution(scatter, targets, torch.maximum(self.chosen, rounding))

    def _adapt(self, task: Task, fit: Fit) -> None:
        """Train a LoRA and a head on the first task; only the LoRA is kept."""
        draws = generator(self.seed, "lora")
        branches = grow_for_task(self.lora, self, self.sites, "first", draws, task, fit)
        head = Heads(self.backbone.width, self.recipe.head_start, self.seed).grow(task.classes).to(self.G.device)

        def loss(x: Samples, y: Tensor) -> Tensor:
            return F.cross_entropy(head(self.features(x)), head.columns(y))

        training = self.recipe.of_task(0)
        groups = with_head(self.lora.groups(factors(branches), self.sites, training.lr), head, training)
        fit(task.train, loss, groups, training)

    def _chosen(self, h: Tensor, y: Tensor, task: int) -> float:
        """Return lambda: the given one, or the one that is best on a random fifth of the task's training images."""
        if self.ridge is not None or len(h) < FEWEST:
            return float(self.chosen) if self.ridge is None else self.ridge
        order = torch.randperm(len(h), generator=generator(self.seed, "ranpac", "held out", task)).to(h.device)
        teach, held = order[: len(h) * 4 // 5], order[len(h) * 4 // 5 :]
        return best_ridge(h[teach], y[teach], h[held], y[held])
