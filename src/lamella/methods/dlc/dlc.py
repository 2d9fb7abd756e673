"""DLC: a low-rank plugin for each task near the classifier, on top of any replay or distillation method.

Xu, Xu, Zhao, Shen & Yang, "Pushing the Limits of Distillation-Based Continual Learning via Classifier-Proximal
Lightweight Plugins", 2026, arXiv 2512.03537 (v3; v1: "Parameter-Efficient Augment Plugin for Class-Incremental
Learning"). This is a reconstruction: the abstracts of v1 to v3 and short summaries were at hand, no full text and no
code. Convolutional LoRA: Aleem et al., "ConvLoRA and AdaBN Based Domain Adaptation via Self-Training", 2024, arXiv
2402.04964.

A base method learns each task as it would alone, from scratch and with its exemplars. The table [method.base] names it
and has its settings. Then the base is frozen, and a plugin is trained that corrects its features for this task. Without
plugins the model is the base, bit for bit.

    symbol                      here
    f_0(x; theta_t)             the base's features: the lane "" of the tails
    Delta_i = scale B A         adapter "plugin-i" on the layers named
    f_i = f(x; theta_t + Delta_i)  lane "plugin-i"
    g(x) = sigmoid(V f_0 + b)   WeightingUnit: V and b
    z(x)                        aggregated: [f_0; g_1 f_1; ...]
    M                           base.exemplars, as they were when the task began
    lambda_aux                  auxiliary_weight
    new or other                the auxiliary classifier: the classes of the task, and all others as one

Phase 2 has two parts. In the first, which is left out by default (`alone`), the plugin and the auxiliary classifier are
trained, without the other plugins and the joint classifier: the plugin has to tell new classes from old ones itself. In
the second, everything that is named below is trained together.

Certain (abstracts): low-rank plugins on deep layers (v3: those nearest to the classifier) of a base trained from
scratch by replay or distillation, one a task, all aggregated at inference with scores that a light unit learns.
Probable (a third party's summary): ConvLoRA, a frozen base in a second phase, scores that differ from image to image.

Departures (ours, where the public text is silent; each is a setting unless it says "always"):
- Layers and rank: the two convolutions of the last block, rank 2, ConvLoRA's "kernel" factorisation, scale 1. The
  third version has plugins nearest to the classifier, and 4 % of a ResNet-18 are six plugins of rank 8 on the last
  convolution: `layers = ["last-conv"]`, `rank = 8` is the better guess for its protocol with 50 first classes.
- With the defaults plugins hardly move features (0.2 to 1.8 %, docs/results.md): the base fits the images of the task
  already, so little of the loss is left to them. The second reading gives them something to learn: a first part of
  phase 2 without the joint classifier (`alone`), images as the base has not seen them (`crop`), a larger update
  (`scale`).
- The first task has a plugin too. Batch norm in a plugin's path is the base's, frozen (always).
- Old plugins are frozen, and are used with the later weights of the base. The whole classifier and the whole unit are
  trained in every task (always).
- Gates: a sigmoid of the base's features (a setting), not supervised, with V = 0 and b = 2 at the start (always); or
  the weights of the tasks that a router gives (`router`, ours), fixed before phase 2 begins.
- Aggregation by concatenation, as DER and MEMO do (always); new columns and rows of the classifier start as torch's
  linear layers do. Supervised gates were worse; summing and one plugin for all tasks changed nothing that one seed
  could show (docs/results.md).
- Loss: cross-entropy over all classes, and that of an auxiliary classifier of the new plugin's features, to which all
  old classes are one. It is removed after training (both as in DER and MEMO).
- Old classes have fewer images, so each class is weighted by the inverse of its number of images. On average that is
  class-balanced sampling, but all images are seen. `balance="align"` scales the rows of new classes at the end instead,
  as WA does; with few exemplars the classifier is then much worse (docs/log.md).
- Phase 2: SGD, 60 epochs in both parts together, a learning rate of 0.01 that falls to 0 on a cosine in each (at 0.1
  gates close and stay closed, docs/log.md), a weight decay of 2e-4, and of 5e-4 for the classifiers.
- The base chooses exemplars with its own features (always).
- The trunk ends before the block of the first layer with a plugin (always).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.methods.dlc.losses import loss_alone, loss_together
from lamella.methods.dlc.plugins import Tails, check_base
from lamella.methods.dlc.routed import gates_of
from lamella.methods.dlc.weighting import aggregated
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.shared.classifier import align_new_rows, inverse_shares, start_draws, widened
from lamella.methods.shared.heads import Head, Heads, only_columns
from lamella.methods.shared.own_heads import with_head
from lamella.methods.shared.routing import Routing
from lamella.training.fit import Fit, Loss
from lamella.training.recipe import Training

__all__ = ["DLC"]


class DLC(MethodOnBase):
    """A base method, and one plugin for each task.

    Args:
        backbone: a residual network; that of the base.
        base: the method that trains the backbone, as [method.base] names it; it learns exactly as it would alone.
        seed: the seed of every random draw.
        training: how the plugin, the weighting unit and the classifiers are trained in phase 2; see `Training`.
        layers: which convolutions carry plugins, a list of "last-conv", "last-block", "last-stage", "last-two-stages"
            and patterns of layer names such as "layer4.*.conv2".
        rank: the rank of a plugin's branches; at least 1.
        factorisation: how a branch is factorised: "kernel" (the kernel as one matrix, as in ConvLoRA) or "conv" (a
            k x k convolution into `rank` channels, then a 1 x 1 convolution).
        scale: the factor of a plugin's update, alpha / rank in LoRA; above 0.
        alone: the share of the epochs in which the plugin is trained with the auxiliary classifier alone, before the
            joint classifier; at least 0, below 1.
        crop: the smallest share of an image's area that random crops show in phase 2; above 0, at most 1. At 1 images
            are augmented as in phase 1.
        gate: how the features of a plugin are weighted for each image: "sigmoid" (each plugin for itself), "softmax"
            (the weights of all plugins sum to 1), or "fixed" (all weights are 1).
        routing: what gives the weights in the place of the learned unit; see `Routing`. "none" keeps the unit, "arrow"
            and "entropy" are refused.
        auxiliary_weight: the factor of the auxiliary classifier's loss; at least 0, and 0 leaves the loss out.
        balance: how classes with few images are treated: "weights" (each class has the same weight in the loss),
            "align" (the classifier rows of new classes are scaled to the mean length of old ones) or "none".
        head_weight_decay: the weight decay of the classifiers; at least 0. That of the plugin and the weighting unit is
            `weight_decay`.

    Attributes:
        heads: the classifier of the aggregated features.
        unit: the weighting unit.
        tails: the backbone, cut into the trunk and the tail.

    Raises:
        ValueError: a value is not allowed, or the base or the backbone cannot carry plugins.
    """

    own_calls = ("plugin",)
    reads_features = True
    widens = True
    own_meanings = frozenset({"gate", "router"})

    removed: ClassVar[dict[str, Any]] = {
        "first_plugin": True,
        "shared_plugin": False,
        "aggregate": "concat",
        "gate_input": "base",
        "gate_supervision": 0.0,
        "refresh_old_plugins": False,
    }

    def __init__(
        self,
        backbone: Backbone,
        base: Method,
        *,
        seed: int = 0,
        training: Training = Training(
            epochs=60, lr=0.01, optimizer="sgd", momentum=0.9, weight_decay=2e-4, schedule="cosine"
        ),
        layers: Sequence[str] = ("last-block",),
        rank: int = 2,
        factorisation: str = "kernel",
        scale: float = 1.0,
        alone: float = 0.0,
        crop: float = 1.0,
        gate: str = "sigmoid",
        routing: Routing = Routing(router="none"),
        auxiliary_weight: float = 1.0,
        balance: str = "weights",
        head_weight_decay: float = 5e-4,
    ) -> None:
        super().__init__(base, seed)
        if rank < 1:
            raise ValueError(f"rank {rank} is too small; a plugin needs a rank of at least 1")
        check_one_of("factorisation", factorisation, ("kernel", "conv"))
        check_one_of("balance", balance, ("align", "weights", "none"))
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight {auxiliary_weight} is below 0; 1 is usual, 0 leaves the loss out")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}; it must be above 0, and 1 is usual")
        if not 0 <= alone < 1:
            raise ValueError(f"alone is {alone}; it must be a share of the epochs from 0 to below 1")
        if not 0 < crop <= 1:
            raise ValueError(f"crop is {crop}; it must be above 0 and at most 1, which leaves images as they are")
        check_base(base, backbone)
        self.recipe = training
        self.rank = rank
        self.factorisation = factorisation
        self.scale = scale
        self.alone = alone
        self.crop = crop
        self.gate = gate
        self.auxiliary_weight = auxiliary_weight
        self.balance = balance
        self.head_weight_decay = head_weight_decay
        self.routing = routing
        self.unit = gates_of(base, backbone.width, gate, routing, seed)
        self.heads = Heads(backbone.width, training.head_start, seed)
        self.tails = Tails(backbone, layers, rank, factorisation, scale)

    @property
    def classes(self) -> tuple[int, ...]:
        return self.heads.classes

    @property
    def plugins(self) -> tuple[str, ...]:
        """The names of the plugins. Each has a lane, a gate and columns of the classifier."""
        return tuple(f"plugin-{i}" for i in range(len(self.heads)))

    @property
    def own_adapters(self) -> tuple[str, ...]:
        return self.plugins

    def predict(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        """(n, classes) logits from one pass through the trunk, and one through the tail for each plugin and without."""
        return only_columns(self.logits(x), self.classes, task)

    def logits(self, x: Samples) -> Tensor:
        """(n, classes) logits among all classes."""
        return self.heads(self.features(x))

    def features(self, x: Samples) -> Tensor:
        """(n, d) features of the base and of all plugins, which are weighted by their gates, side by side."""
        features = self.tails(self.tails.trunk(x), ["", *self.plugins])
        return aggregated(features, self.unit(features))

    def readouts(self, x: Samples) -> Mapping[str, Tensor]:
        return self.with_own(self.logits(x), self.base.readouts(x))

    def features_and_readouts(self, x: Samples) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.features(x), self.readouts(x)

    def adapters_of(self, task: int) -> tuple[str, ...]:
        return tuple(name for name in self.plugins if name == f"plugin-{task}")

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        data = self.base.with_exemplars(task.train)
        self.base.learn(task, fit)  # phase 1: the base learns without plugins
        self.eval()  # phase 2: the base is frozen, its batch-norm statistics too

        number = len(self.heads)
        auxiliary = self._grow(task, number)
        self.unit.prepare(fit, data, self.tails.plain, [head.classes for head in self.heads])
        training = self.recipe.of_task(number)
        first = min(round(self.alone * training.epochs), training.epochs - 1)
        plugin = self.tails.factors(self.plugins[-1:])
        crop = None if self.crop == 1 else self.crop

        def train(name: str, loss: Loss, below: list[nn.Parameter], classifiers: nn.Module, epochs: int) -> None:
            groups = with_head([{"params": below}], classifiers, training)
            groups[-1]["weight_decay"] = self.head_weight_decay
            fit(data, loss, groups, replace(training, epochs=epochs), crop=crop, name=name)

        if first:
            loss = loss_alone(self.tails, self.plugins[-1], auxiliary, task.classes)
            train("plugin-alone", loss, plugin, auxiliary, first)

        shares = inverse_shares(data.labels, self.classes).to(self.heads.here.device)
        weight = shares if self.balance == "weights" else None
        other = self.auxiliary_weight, auxiliary, task.classes
        loss = loss_together(self.tails, self.plugins, self.unit, self.heads, weight, other)
        classifiers = nn.ModuleList([self.heads, auxiliary] if self.auxiliary_weight else [self.heads])
        gates = [p for p in self.unit.parameters() if p.numel()]
        train("plugin", loss, [*plugin, *gates], classifiers, training.epochs - first)
        if self.balance == "align" and number:
            align_new_rows(self.heads)

    def _grow(self, task: Task, number: int) -> Head:
        """Add plugin, gate, rows and columns of the classifier for a task; return the plugin's auxiliary classifier."""
        width = self.backbone.width
        self.tails.grow(f"plugin-{number}", generator(self.seed, "plugin", number))
        self.unit.grow()
        columns = start_draws(self.heads, "plugin-columns", number)
        self.heads = widened(self.heads, (2 + len(self.plugins)) * width, columns)
        self.heads.grow(task.classes, start_draws(self.heads, "plugin-head", number))
        draws = generator(self.seed, "plugin-auxiliary", number)
        return Head(width, range(len(task.classes) + 1), draws, self.heads.start).to(self.heads.here.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        held = state_dict.get(prefix + "heads.heads.0.weight")
        width = self.backbone.width if held is None else held.shape[1]
        self.heads = Heads(width, self.heads.start, self.seed).to(self.heads.here.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
