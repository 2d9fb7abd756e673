"""Task calibration: predicts the task of an image in the same forward pass, and weights the classes by it.

A replay-free method trains the head of each task alone, so in the end most errors are a wrong task. This part predicts
the task of an image from its class token, in the forward pass that computes the features, and by default adds beta *
confidence * log P(task) to the logit of each class (`form`). No old image is kept. There are two scores for P(task):

    "signature"     the directions that each task's class tokens added at each layer (DualLoRA)
    "gaussian"      class means and one covariance of the class tokens that enter the last block, moved as they drift:
                    P(task) is the sum of the discriminant's P(class) over its classes. The logits are first changed
                    to log P(class | task), so that at full confidence the sum is the log of a product

Source: the predicted task identity of DualLoRA (arXiv 2411.00623), as this library reconstructs it. The formulas and
symbols are in signatures.py, the forms in calibration.py (both in memory/); methods/duallora.py says what is certain
about the paper. The "gaussian" score is our own and uses the statistics of alignment (see align.py for their sources).

Departures: the signatures of a task are computed after it was learned, and are not updated when the base changes later.
If the base changes the inputs of old tasks, old signatures become less exact. The paper uses this in DualLoRA only.
Gaussians follow the whole drift of each task's images; `drift_prior` of `align` has no effect on them.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lamella.adapters.adapter import watch
from lamella.common.checks import check_one_of
from lamella.data.lengths import in_order
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.calibration import Calibration
from lamella.memory.gaussians import ClassGaussians, shrunk
from lamella.memory.inputs import Inputs, check_basis, gather
from lamella.memory.resizable import Resizable
from lamella.memory.signatures import Signatures, protected_share
from lamella.methods.method import Method
from lamella.methods.on_base import MethodOnBase
from lamella.methods.parts.drift import affine_drift, check_ridge
from lamella.methods.shared.heads import only_columns
from lamella.training.fit import Fit

__all__ = ["Calibrated"]


class Calibrated(Resizable, MethodOnBase):
    """A method whose logits are calibrated by the predicted task.

    Args:
        base: any method on a transformer with a class token; it learns exactly as it would alone.
        seed: the seed of every random draw.
        score: how tasks are recognised: "signature" (by the directions of their class tokens in the adapted layers of
            the base, or in the key and value layers if it has none) or "gaussian" (by Gaussians of the class tokens
            that enter the last block).
        strength: beta, the weight of the predicted task in the logits; at least 0, and 0 leaves the logits as they are.
        form: how the task and its confidence enter: "add" (the confidence times log P(task) is added), "scale" (logits
            above the least one are multiplied by a factor of the task, the smaller the surer) or "mix" (probabilities
            among all classes and those among the classes of the predicted task, mixed by the confidence).
        temperature: tau, the temperature of the softmax over the task scores; above 0. If left out, it is 0.1 for
            signatures and 1 for Gaussians.
        energy: the share of the class tokens' energy that signatures keep; above 0, at most 1.
        shrinkage: the share of a multiple of the identity in the covariance of the Gaussians; above 0, at most 1.
        ridge: the strength of the regularisation of the Gaussians' drift map; above 0.

    Attributes:
        taught: (classes, 2) int64, each global class id and the last task that had this class.

    Raises:
        ValueError: a value is not allowed, or the backbone has no class token.
    """

    resizable = ("taught",)
    own_calls = ("calibrate-",)
    taught: Tensor

    removed: ClassVar[dict[str, Any]] = {"score_layers": 1.0}

    def __init__(
        self,
        base: Method,
        *,
        seed: int = 0,
        score: str = "signature",
        strength: float = 1.0,
        form: str = "add",
        temperature: float | None = None,
        energy: float = 0.95,
        shrinkage: float = 0.1,
        ridge: float = 3.0,
    ) -> None:
        super().__init__(base, seed)
        check_one_of("score", score, ("signature", "gaussian"))
        check_ridge(ridge)  # these three refuse bad values before anything is learned
        protected_share(energy, 0, None)
        shrunk(torch.eye(1), shrinkage)
        usual = 0.1 if score == "signature" else 1.0
        self.calibration = Calibration(strength, usual if temperature is None else temperature, form)
        self.score = score
        self.strength = strength
        self.form = form
        self.energy = energy
        self.shrinkage = shrinkage
        self.ridge = ridge
        if score == "signature":
            self.watched = base.sites or base.backbone.sites("key+value")
        else:
            self.watched = base.backbone.sites("key+value")[-1:]
        check_basis(base.backbone.model, self.watched, "class_token")
        self.signatures = Signatures(self.watched)
        self.statistics = ClassGaussians(self.watched[0].layer.weight.shape[1] if score == "gaussian" else 0)
        self.register_buffer("taught", torch.zeros(0, 2, dtype=torch.int64))

    def predict(self, x: Samples, task: tuple[int, ...] | None = None) -> Tensor:
        """(n, classes) calibrated logits of the base, from one pass of the base."""
        if self.strength == 0:
            return self.base.predict(x, task)
        logits, scores = self._read(lambda images: self.base.predict(images, task), x)
        return only_columns(self._calibrated(logits, scores), self.classes, task)

    def readouts(self, x: Samples) -> Mapping[str, Tensor]:
        base, scores = self._read(self.base.readouts, x)
        return self.with_own(self._calibrated(base[""], scores), base)

    def features_and_readouts(self, x: Samples) -> tuple[Tensor, Mapping[str, Tensor]]:
        (features, base), scores = self._read(self.base.features_and_readouts, x)
        return features, self.with_own(self._calibrated(base[""], scores), base)

    def choose_task(self, x: Samples) -> Tensor:
        """Return (n,) the number of the task that each image is most likely from, in the order of learning."""
        return self._read(self.base.predict, x)[1].argmax(1)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        gaussian, number = self.score == "gaussian", max(self._last().values(), default=-1) + 1
        moves = gaussian and number > 0 and not self.routed
        before = self._inputs(task, fit, "calibrate-before") if moves else None
        self.base.learn(task, fit)
        self.eval()
        inputs = self._inputs(task, fit, "calibrate-after")
        if gaussian:
            after = inputs[self.watched[0].name].class_tokens
            if before is not None:
                drift = affine_drift(before[self.watched[0].name].class_tokens, after, self.ridge)
                self.statistics.move(*drift)
            self.statistics.add(after, task.train.labels, task.classes)
        else:
            self.signatures.extend(inputs, protected_share(self.energy, number, None))
        last = self._last() | dict.fromkeys(task.classes, number)
        self.taught = torch.tensor(list(last.items()), device=self.taught.device)

    def _last(self) -> dict[int, int]:
        """Return the last task that had each class, by global class id."""
        return dict(self.known("taught"))

    def _inputs(self, task: Task, fit: Fit, name: str) -> dict[str, Inputs]:
        batches = 0

        def observe(x: Samples, y: Tensor) -> None:
            nonlocal batches
            self.base.predict(x)
            for seen in inputs.values():
                _check_inputs(seen.tokens[-1], x)
                del seen.tokens[batches:-1]  # a routed base passes its images several times; the last pass counts
            batches += 1

        with gather(self.backbone.model, self.watched) as inputs:
            order = fit.scan(task.train, observe, any_order=True, name=name)
        for seen in inputs.values():
            seen.tokens = [in_order(seen.class_tokens, order)]
        return inputs

    def _read(self, forward: Callable[[Samples], Any], x: Samples) -> tuple[Any, Tensor]:
        """Return the result of `forward` for images x, and the task scores (n, T) from the same pass."""
        if self.score == "signature":
            result = self.signatures.reading(forward, x)
            scores = self.signatures.scores()
        else:
            width = self.statistics.scatter.shape[0]
            with watch(self.watched, lambda _: Inputs(width, "class_token"), padding_too=True) as inputs:
                result = forward(x)
            h = inputs[self.watched[0].name].tokens[-1]
            of_class, last = self.statistics.linear_discriminant(h, self.shrinkage), self._last()
            owner = torch.tensor([last[c] for c in self.statistics.classes], device=x.device)
            scores = torch.stack([of_class[:, owner == t].logsumexp(1) for t in range(int(owner.max()) + 1)], 1)
        _check_inputs(scores, x)
        return result, scores

    def _calibrated(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Return (n, classes) logits, calibrated by the tasks; with Gaussians the logits are log P(class | task)."""
        if self.strength == 0:
            return logits
        last = self._last()
        owners = [last[c] for c in self.classes]
        if self.score == "gaussian":
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
            for task in set(owners):
                own = torch.tensor([task == owner for owner in owners], device=logits.device)
                logits[:, own] = logits[:, own].log_softmax(1)
        return self.calibration(logits, scores, owners)


def _check_inputs(seen: Tensor, x: Samples) -> None:
    """Refuse a base whose layers do not read exactly one input for each image."""
    if len(seen) != len(x):
        raise RuntimeError(
            f"the base passed {len(seen)} inputs through its layers for {len(x)} samples, so tasks cannot be told; "
            "calibration needs one pass over the batch"
        )
