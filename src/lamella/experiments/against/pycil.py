"""PyCIL's methods: distillation, weight alignment, herding and class means."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lamella.common.randomness import generator
from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import draw, gradient, inputs, largest, learned, relative, tiny, tiny_tasks
from lamella.memory.exemplars import herding
from lamella.methods import METHODS
from lamella.methods.shared.classifier import align_new_rows
from lamella.methods.shared.distillation import distillation
from lamella.methods.shared.heads import Heads

__all__ = ["distilled", "herded", "icarl", "nearest_mean", "wa"]

TEMPERATURE = 2.0
CLASSES, KEPT, WIDTH = 4, 6, 16


def icarl(checkout: Checkout) -> list[Row]:
    """Compare distillation and herding."""
    return [*distilled(checkout, "models/icarl.py"), *herded(checkout)]


def wa(checkout: Checkout) -> list[Row]:
    """Compare distillation and `IncrementalNet.weight_align`."""
    align = checkout.take("utils/inc_net.py", "IncrementalNet.weight_align")
    heads, draws = Heads(WIDTH), generator(0, "against", "wa")
    for classes in ((0, 1, 2), (3, 4)):
        heads.grow(classes, draws).weight.data.mul_(len(classes))
    weight = torch.cat([heads[i].weight.detach() for i in range(len(heads))])
    theirs = SimpleNamespace(fc=SimpleNamespace(weight=torch.nn.Parameter(weight.clone())))
    align(theirs, 2)
    align_new_rows(heads)
    ours = torch.cat([heads[i].weight.detach() for i in range(len(heads))])
    aligned = Row("aligned rows", "two heads of random rows", largest(ours, theirs.fc.weight), 1e-6)
    return [*distilled(checkout, "models/wa.py"), aligned]


def distilled(checkout: Checkout, file: str = "models/lwf.py") -> list[Row]:
    """Compare `_KD_loss` of a file with our distillation."""
    loss = checkout.take(file, "_KD_loss")
    logits, teacher = draw(32, CLASSES, name="student"), draw(32, CLASSES, name="teacher")
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, other = distillation(ours, teacher, TEMPERATURE), loss(theirs, teacher, TEMPERATURE)
    value.backward()
    other.backward()
    on = "random logits of 32 samples"
    return [
        Row("distillation loss", on, largest(value, other), 1e-6),
        Row("its gradient", on, largest(gradient(ours), gradient(theirs)), 1e-6),
    ]


def herded(checkout: Checkout) -> list[Row]:
    """Compare `BaseLearner._construct_exemplar` with our herding."""
    # A data set and its loader are positions here.
    choose = checkout.take("models/base.py", "BaseLearner._construct_exemplar", DataLoader=lambda data, **_: data)
    features = draw(CLASSES * 20, WIDTH, name="features") + 0.5
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    learner: Any = SimpleNamespace(_known_classes=0, _total_classes=CLASSES, _class_means=np.zeros((CLASSES, WIDTH)))
    learner._data_memory, learner._targets_memory = np.array([]), np.array([])
    learner._extract_vectors = lambda positions: (features[positions.astype(int)].numpy(), None)

    def get_dataset(classes: Any, appendent: Any = None, ret_data: bool = False, **_: Any) -> Any:
        own = appendent[0] if appendent is not None else np.arange(20) + 20 * int(classes[0])
        return (own, None, own) if ret_data else own

    choose(learner, SimpleNamespace(get_dataset=get_dataset), KEPT)
    ours = torch.cat([20 * i + herding(unit[20 * i : 20 * i + 20], KEPT) for i in range(CLASSES)])
    theirs = torch.as_tensor(learner._data_memory.astype(int))
    others = int((ours != theirs).sum()) if ours.shape == theirs.shape else len(ours)
    return [Row("exemplars that differ, in their order", f"{CLASSES} classes of random features", others, 0.0)]


def nearest_mean(checkout: Checkout) -> list[Row]:
    """Compare the prototypes of `SimpleCIL.replace_fc` with our class means."""
    replace = checkout.take("models/simplecil.py", "SimpleCIL.replace_fc")
    backbone, (task,) = tiny().eval(), tiny_tasks(1)
    ours = learned(METHODS["nearest-mean"](backbone), [task]).statistics.means
    x = inputs(task, backbone)
    weight = torch.nn.Parameter(torch.zeros(ours.shape))
    network = SimpleNamespace(fc=SimpleNamespace(weight=weight))
    theirs = SimpleNamespace(_network=network, train_dataset=SimpleNamespace(labels=task.train.labels.numpy()))
    model: Any = _Features(backbone)
    replace(theirs, [(None, x, task.train.labels)], model, None)
    return [Row("class means, relative", "one task of random images", relative(ours, weight), 1e-6)]


class _Features(torch.nn.Module):
    """A network that gives its features as theirs do."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Any) -> dict[str, Any]:
        return {"features": self.backbone(x)}
