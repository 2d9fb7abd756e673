"""CoLoR: a low-rank expert per task, chosen for each image by the nearest cluster centre.

Wistuba, Sivaprasad, Balles & Zappella, "Continual Learning with Low Rank Adaptation", 2023, arXiv 2311.17601.

The tasks share no trained tensor, so learning a task changes nothing that older tasks use. What is left to predict is
the task, and the centres of each task's features are enough for that.

    paper                       here
    LoRA of task t              adapter "task<t>", a branch each on the query and the value rows
    r                           rank
    k                           clusters: the number of k-means centres that are kept of a task
    features for clustering     key_features: "plain" (the backbone alone), "first_task" (with task 0's expert: CoLoR++)

A batch of mixed tasks costs two forward passes, whatever the number of tasks: one for the keys, and one in which every
expert acts with a coefficient for each image.

Departures, and our choices where the paper leaves it open:
- rank 16 where the paper's main setting has 64; it reports that small ranks lose little.
- clusters defaults to two per class, for tasks of new classes; tasks that are domains of the same classes want 5.
- Centres are computed after the task was trained. So with "first_task" the centres of task 0, too, are computed with
  the expert of task 0.
- A class that several tasks have is scored in the hard choice by the head of the chosen task, if that head has it: the
  features are those of its expert. Otherwise the head that learned the class last scores it, minus the penalty.
- `choice="soft"`: P(class) = sum_t w_t P_t(class), where w is the softmax of the negative distances to each task's
  nearest centre. The experts are mixed by the same w, so that this too is one pass.
- The training settings are those of `seq-lora`.
- `router` puts another score in the place of the negative distance to the nearest centre, which is the paper's; all
  that is said of distances here then holds for it. With "entropy" a batch costs t + 1 passes, else two.

Features of old images do not drift. Alignment would measure the step from an old expert to the new one on the new
task's images, so it leaves the old means where they are (`routed`). In the soft choice a new expert has some weight for
old images too. It is small if tasks are well separated, and means that were moved by such a step would be further off.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lamella.adapters.adapter import using
from lamella.backbones import Backbone
from lamella.common.checks import check_one_of
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.task_scores import TaskGaussians, TaskRegression
from lamella.methods.shared.heads import OTHER_TASK_PENALTY, only_columns
from lamella.methods.shared.own_heads import OwnHeads, factors
from lamella.methods.shared.routing import ROUTERS, Experts, Routing
from lamella.training.fit import Fit
from lamella.training.recipe import LoRA, Training

__all__ = ["CoLoR"]


class CoLoR(OwnHeads):
    """One expert and one head per task, chosen by the nearest cluster centre or by another router.

    Args:
        backbone: the feature extractor; the layers of the roles in `sites` are adapted.
        seed: the seed of every random draw.
        lora: the form of the branches that are the expert of a task; see `LoRA`.
        training: how the expert and the head of a task are trained; see `Training`.
        routing: how the task of an image is recognised; see `Routing`. `top` is for the choice "soft".
        clusters: how many cluster centres the router "nearest" keeps of each task; at least 1. If left out, two for
            each of its classes.
        key_features: the features that the router reads: "plain" (those of the backbone without experts) or
            "first_task" (those of the backbone with the expert of the first task: CoLoR++).
        choice: how an image finds its expert: "hard" (it is that of the task with the best score, such as that of the
            nearest centre) or "soft" (all experts, or the `top` ones, are mixed by the softmax of the scores, such as
            the negative distances to their nearest centres).

    Raises:
        ValueError: a value is not allowed.
    """

    routed = True
    needs = frozenset({"frozen weight"})

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        lora: LoRA = LoRA(rank=16, sites=("query", "value")),
        training: Training = Training(schedule="inflora-code"),
        routing: Routing = Routing(),
        clusters: int | None = None,
        key_features: str = "plain",
        choice: str = "hard",
    ) -> None:
        super().__init__(backbone, seed, training, lora)
        check_one_of("key_features", key_features, ("plain", "first_task"))
        check_one_of("choice", choice, ("hard", "soft"))
        if clusters is not None and clusters < 1:
            raise ValueError(f"clusters {clusters} is too small; a task needs at least 1, or leave it out")
        self._check_routing(routing, clusters, key_features, choice)
        self.routing = routing
        self.clusters = clusters
        self.key_features = key_features
        self.choice = choice
        self.keys = routing.keys(backbone.width, seed, clusters, self.sites)

    def _check_routing(self, routing: Routing, clusters: int | None, key_features: str, choice: str) -> None:
        routing.check("color", ROUTERS, {})
        if clusters is not None and routing.router != "nearest":
            raise ValueError(
                f"clusters {clusters} is for the router 'nearest', and router is '{routing.router}'; leave clusters out"
            )
        if routing.router == "entropy" and key_features != "plain":
            raise ValueError("router 'entropy' reads no key_features; leave key_features out")
        if routing.top is not None and choice != "soft":
            raise ValueError(
                f"top {routing.top} is for the choice 'soft', and choice is '{choice}'; leave top out, or set choice"
            )

    def choose_task(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        """Return (n,) the number of the task with the best score, such as that of the nearest centre.

        Args:
            x: (n, 3, size, size) normalised images.
            task: global class ids; if given, only tasks that have one of them are considered.
        """
        return self._closeness(x, task).argmax(1)

    def features(self, x: Samples) -> Tensor:
        """(n, d) features of the chosen expert of each image, or of the mixed experts if the choice is "soft"."""
        return self._experts(x, self._weights(self._closeness(x, None)))

    def predict(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        """(n, classes) logits of the chosen task's head; those of classes that this head lacks are far below them."""
        return only_columns(self._read(x, task)[1], self.classes, task)

    def features_and_logits(self, x: Samples) -> tuple[Tensor, Tensor]:
        """(n, d) features of the chosen experts and (n, classes) logits, from the same two forward passes."""
        return self._read(x, None)

    def _read(self, x: Samples, task: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
        closeness = self._closeness(x, task)
        features = self._experts(x, self._weights(closeness))
        head = self._chosen_head if self.choice == "hard" else self._mixed_heads
        return features, head(features, closeness)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        number = len(self.heads)
        expert = f"task{number}"
        branches = self.grow_new(expert, generator(self.seed, "expert", number), task, fit)

        def features(x: Samples) -> Tensor:
            with using(self.sites, expert):
                return self.backbone(x)

        self.train_head(task, fit, factors(branches), features=features)
        self.routing.learn(self.keys, self._routed(), task, fit)

    def adapters_of(self, task: int) -> tuple[str, ...]:
        return (f"task{task}",)

    def forget(self, number: int) -> None:
        """Remove a task's expert, head and centres; no other tensor depends on the task.

        Args:
            number: the place of the task in the order of learning, from 0.

        Raises:
            ValueError: the expert of this task computes the features of all centres, or the router keeps what all
                tasks share.
        """
        if isinstance(self.keys, TaskGaussians | TaskRegression):
            raise ValueError(
                f"what the router '{self.routing.router}' keeps holds all tasks together; only a model with the "
                "router 'nearest', 'arrow' or 'entropy' can forget one"
            )
        if self.key_features == "first_task" and number == 0 and len(self.heads) > 1:
            raise ValueError("the expert of the first task makes the keys of all others (key_features 'first_task')")
        for layer in {site.layer for site in self.sites}:
            experts = [layer.branches.pop(f"task{t}") for t in range(len(self.heads))]
            del experts[number]
            layer.branches.update({f"task{t}": expert for t, expert in enumerate(experts)})
        self.heads.drop(number)
        if self.keys is not None:
            self.keys.drop(number)

    def _routed(self) -> Experts:
        names = [f"task{t}" for t in range(len(self.heads))]
        base = "task0" if self.key_features == "first_task" else ()
        return Experts(self.backbone, self.sites, names, base, self.heads)

    def _closeness(self, x: Samples, task: tuple[int, ...] | None) -> Tensor:
        """(n, tasks) scores, such as negative distances; tasks without any of the given classes are excluded."""
        closeness = self.routing.scores(self.keys, self._routed(), x)
        able = None if task is None else [t for t, ids in enumerate(self._ids()) if set(ids) & set(task)]
        return self.routing.sharpened(only_columns(closeness, range(len(self.heads)), able))

    def _weights(self, closeness: Tensor) -> Tensor:
        """(n, tasks) float32 weights of the experts for each image; each row sums to 1."""
        if self.choice == "soft":
            return closeness.softmax(1).float()
        return F.one_hot(closeness.argmax(1), closeness.shape[1]).float()

    def _experts(self, x: Samples, weights: Tensor) -> Tensor:
        """(n, d) features from one forward pass, in which the experts are weighted for each image."""
        with using(self.sites, {f"task{t}": w for t, w in enumerate(weights.unbind(1))}):
            return self.backbone(x)

    def _logits(self, features: Tensor) -> Tensor:
        """(n, tasks, classes) logits of every head, -inf for classes that a head does not have."""
        position = {c: i for i, c in enumerate(self.classes)}
        logits = features.new_full((len(features), len(self.heads), len(position)), -torch.inf, dtype=torch.float32)
        for t, ids in enumerate(self._ids()):
            logits[:, t, [position[c] for c in ids]] = self.heads[t](features).float()
        return logits

    def _chosen_head(self, features: Tensor, closeness: Tensor) -> Tensor:
        every = torch.arange(len(features), device=features.device)
        own = self._logits(features)[every, closeness.argmax(1)]
        missing = own.isneginf()
        logits = torch.where(missing, self.heads(features), own)
        spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
        return logits - (OTHER_TASK_PENALTY + spread) * missing

    def _mixed_heads(self, features: Tensor, closeness: Tensor) -> Tensor:
        within = self._logits(features).log_softmax(2)  # log P_t(class)
        return torch.logsumexp(closeness.log_softmax(1).float()[:, :, None] + within, dim=1)

    def _ids(self) -> list[tuple[int, ...]]:
        return [self.heads[t].classes for t in range(len(self.heads))]
