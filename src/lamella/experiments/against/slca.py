"""SLCA: three tasks, learned by both sides from the same weights, images and draws."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lamella.common.randomness import generator
from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import inputs, relative, tiny, tiny_tasks
from lamella.methods import METHODS
from lamella.methods.shared.heads import Heads
from lamella.methods.shared.pseudo_features import roots_of
from lamella.training.fit import Fit

__all__ = ["rows"]

TASKS, SAMPLES = 3, 256
FLOOR = 1e-4  # what both add to the variances of a class


def rows(checkout: Checkout) -> list[Row]:
    """Compare `SLCA.incremental_train`, `BaseLearner._compute_class_mean` and `SimpleContinualLinear` with ours."""
    tasks, backbone = tiny_tasks(TASKS), tiny()
    images = [inputs(task, backbone) for task in tasks]
    ours: Any = METHODS["slca"](backbone, samples=SAMPLES)
    fit, same = _Watched(Fit(ours, backbone.transform, device="cpu")), _Same()
    theirs = _learner(checkout, same)
    logits: list[Tensor] = []
    for task, x in zip(tasks, images, strict=True):
        fit.begin(str(task.id))
        ours.learn(task, fit)
        same.follow(ours, fit)
        theirs.incremental_train(_data(task, x))
        with torch.no_grad():
            logits = [theirs._network.eval()(part)["logits"] for part in images]
        theirs.after_task()
    statistics = ours.eval().kept.statistics
    covariances = torch.stack([L @ L.T for L in roots_of(statistics.scatters, statistics.counts, FLOOR)])
    with torch.no_grad():
        found = [(ours.features(x), theirs._network.extract_vector(x)) for x in images]
        answers = [(ours.heads(f), other) for (f, _), other in zip(found, logits, strict=True)]
    samples, on = torch.cat(same.samples)[: len(fit.x)], f"{TASKS} tasks of random images"
    return [
        Row("features, relative", on, max(relative(*pair) for pair in found), 1e-4),
        Row("class means, relative", on, relative(statistics.means, torch.as_tensor(theirs._class_means)), 1e-4),
        Row("class covariances, relative", on, relative(covariances, theirs._class_covs), 1e-4),
        Row("samples of the alignment, relative", "the same draws", relative(fit.x, samples), 1e-4),
        Row("logits after it, relative", on, max(relative(*pair) for pair in answers), 1e-4),
    ]


def _learner(checkout: Checkout, same: "_Same") -> Any:
    """Return their learner before its first task, with a network like ours."""
    from timm.layers.weight_init import trunc_normal_

    given: dict[str, Any] = {"DataLoader": lambda data, **_: [data], "tensor2numpy": lambda x: x.detach().numpy()}
    base = checkout.take("models/base.py", "BaseLearner", **given)
    drawing = SimpleNamespace(**vars(torch) | {"randperm": lambda _: next(same.orders)})
    # The fall after 18 epochs is that of their configuration for CIFAR-100; it replaces a constant of the file.
    kind = checkout.take(
        "models/slca.py", "SLCA", BaseLearner=base, MultivariateNormal=same.normal, milestones=[18],
        optim=torch.optim, torch=drawing, **given,
    )  # fmt: skip
    learner: Any = kind.__new__(kind)  # what its constructor reads of a configuration and of files is given here
    linear = checkout.take("convs/linears.py", "SimpleContinualLinear", trunc_normal_=trunc_normal_, deepcopy=deepcopy)
    learner._network, learner._device, learner._multiple_gpus = _Network(linear), "cpu", ["cpu"]
    learner._cur_task, learner._known_classes, learner.task_sizes = -1, 0, []
    learner._data_memory = learner._targets_memory = []
    learner.bcb_lrscale, learner.fix_bcb, learner.logit_norm = 1 / 100, False, 0.1
    learner.save_before_ca, learner.log_path, learner.model_prefix, learner.seed = False, "", "", 0
    learner.save_checkpoint, learner._compute_accuracy = lambda *_, **__: None, lambda *_: 0.0
    return learner


def _data(task: Any, x: Any) -> Any:
    """Return what stands for their data: a batch of all images of some classes of a task."""

    def get_dataset(classes: Any, source: str = "train", ret_data: bool = False, **_: Any) -> Any:
        own = torch.isin(task.train.labels, torch.as_tensor(classes))
        batch = (None, x[own], task.train.labels[own])
        return (None, None, batch) if ret_data else batch

    return SimpleNamespace(get_task_size=lambda _: len(task.classes), get_dataset=get_dataset, dataset_name="")


class _Network(nn.Module):
    """What their learner trains: our smallest network with their heads, which start as ours do."""

    def __init__(self, linear: Callable[..., Any]) -> None:
        super().__init__()
        self.convnet, self.linear = tiny().requires_grad_(True), linear
        self.fc: Any = None
        self.feature_dim, self.starts = self.convnet.width, Heads(self.convnet.width, "uniform")

    def update_fc(self, classes: int) -> None:
        if self.fc is None:
            self.fc = self.linear(self.feature_dim, classes)
        else:
            self.fc.update(classes)
        first = len(self.starts.classes)
        start, new = self.starts.grow(range(first, first + classes)), self.fc.heads[-1][-1]
        new.load_state_dict({"weight": start.weight, "bias": start.bias})

    def extract_vector(self, x: Any) -> Tensor:
        return self.convnet(x)

    def forward(self, x: Any, bcb_no_grad: bool = False, fc_only: bool = False) -> dict[str, Tensor]:
        return self.fc(x if fc_only else self.convnet(x))


class _Watched:
    """A training loop that keeps what an alignment is given, and its batches."""

    def __init__(self, fit: Fit) -> None:
        self.fit, self.x, self.batches = fit, torch.zeros(0, 1), list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fit, name)

    def __call__(self, data: Any, loss: Any, *args: Any, **options: Any) -> Any:
        if options.get("name") != "align":
            return self.fit(data, loss, *args, **options)
        self.x, self.batches = data.x, []

        def kept(x: Tensor, y: Tensor) -> Tensor:
            self.batches.append(x.detach().clone())
            return loss(x, y)

        return self.fit(data, kept, *args, **options)


class _Same:
    """The draws of our last alignment, for theirs."""

    def __init__(self) -> None:
        self.noise: Iterator[Tensor] = iter(())
        self.orders: Iterator[Tensor] = iter(())
        self.samples: list[Tensor] = []

    def follow(self, ours: Any, fit: _Watched) -> None:
        draws, classes = generator(ours.seed, "slca", "samples", len(ours.heads)), len(ours.heads.classes)
        noise = [
            torch.randn(SAMPLES, ours.backbone.width, generator=draws, dtype=torch.float64) for _ in range(classes)
        ]
        self.noise: Iterator[Tensor] = cycle(noise)  # theirs draws in each epoch
        if len(fit.x):
            seen = torch.cdist(torch.cat(fit.batches), fit.x).argmin(1)
            self.orders = iter(seen.split(len(fit.x)))
        self.samples = []

    def normal(self, mean: Tensor, covariance: Tensor) -> Any:
        root, noise = torch.linalg.cholesky(covariance.double()), next(self.noise)
        found = (mean + noise @ root.T).float()
        self.samples.append(found)
        return SimpleNamespace(sample=lambda sample_shape: found)
