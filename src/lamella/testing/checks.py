"""What the contract of a method promises, one check each; a failure tells the author what to change."""

import copy
from collections.abc import Callable
from contextlib import ExitStack

import torch

from lamella.methods import Method
from lamella.methods.on_base import MethodOnBase
from lamella.testing.tiny import MethodCheckError, tiny_tasks
from lamella.testing.trial import (
    Killed,
    KilledAfter,
    Trial,
    difference,
    learn,
    learned_tensors,
    logits,
    lost_values,
    restored,
    scratch_folder,
    unregistered,
    unseen_inputs,
)
from lamella.training.checkpoints import Checkpoints

__all__ = ["CHECKS"]

STATE = (
    "what has to survive must be a parameter (with requires_grad=False, if nothing trains it) or a buffer of the method"
)
DRAWS = "every draw must come from generator(self.seed, 'a name', ...), and from no generator that is kept"


def logits_grow_with_the_classes_and_are_finite(trial: Trial) -> None:
    """predict gives one finite logit for each class seen so far, in the order of `classes`."""
    method, sizes = trial.learned.method, trial.learned.sizes
    expected = tuple(c for task in trial.tasks[:3] for c in task.classes)
    if sizes != [2, 4, 6]:
        raise MethodCheckError(
            f"after tasks of two classes each, predict gave {sizes} logits; give one for every class seen so far: 2, "
            "4, 6"
        )
    if tuple(method.classes) != expected:
        raise MethodCheckError(
            f"classes is {tuple(method.classes)} after tasks with the classes {expected}; give the global ids in the "
            "order in which they were first learned, which is the order of the columns of predict"
        )
    if not torch.isfinite(logits(method)).all():
        raise MethodCheckError("predict gave logits that are not finite; rule classes out with only_columns")


def features_are_one_row_a_sample(trial: Trial) -> None:
    """features gives (n, d) finite numbers."""
    method, x = trial.learned.method, unseen_inputs(trial.learned.method)
    with torch.no_grad():
        found = method.features(x)
    if found.ndim != 2 or len(found) != len(x) or not torch.isfinite(found).all():
        raise MethodCheckError(f"features of {len(x)} samples have the shape {tuple(found.shape)}; give finite (n, d)")


def nothing_stays_trainable(trial: Trial) -> None:
    """After learning no parameter requires a gradient or has one."""
    left = [name for name, p in trial.learned.method.named_parameters() if p.requires_grad or p.grad is not None]
    if left:
        raise MethodCheckError(
            f"'{left[0]}' is still trainable, or has a gradient, after learning; hand what trains to fit, "
            "which freezes it again, and set requires_grad to False where you set it to True"
        )


def the_backbone_changes_only_where_the_method_says_so(trial: Trial) -> None:
    """Weights of the backbone move only with `changes_backbone`, or with `merges` in the layers of `sites`."""
    method, before = trial.learned[:2]
    after = method.backbone.model.state_dict()
    moved = {k for k, v in before.items() if k not in after or not torch.equal(after[k], v)}
    merged = {f"{site.name}.weight" for site in method.sites} if method.merges else set()
    if not method.changes_backbone and moved - merged:
        raise MethodCheckError(
            f"learning changed '{min(moved - merged)}' of the backbone; say so in the class, with changes_backbone = "
            "True, or with merges = True where adapters are folded into the layers of `self.sites`. Batch-norm "
            "statistics move in train mode alone: call self.eval() in learn"
        )
    if not moved and (method.changes_backbone or method.merges):
        raise MethodCheckError(
            "the class says that it changes weights of the backbone (changes_backbone or merges), but learning left "
            "all as they were; leave that out"
        )


def a_prediction_does_not_depend_on_its_batch(trial: Trial) -> None:
    """A sample gets the same logits alone, among others, and in another order."""
    method, x = trial.learned.method, unseen_inputs(trial.learned.method)
    with torch.no_grad():
        together = method.predict(x)
        alone = torch.cat([method.predict(unseen_inputs(method, label)) for label in range(len(x))])
        backwards = method.predict(x[torch.arange(len(x)).flip(0)]).flip(0)
    scale = together.abs().max().clamp(min=1e-12)
    for found, how in ((alone, "alone"), (backwards, "in another order")):
        apart = float(((found - together) / scale).abs().max())
        if not apart <= 2e-5:
            raise MethodCheckError(
                f"logits of samples that are predicted {how} differ from those in a batch by {apart:.1e} of the "
                "largest; predict may use no statistics of its batch, such as batch norm in train mode or a mean over "
                "samples"
            )


def predicting_changes_nothing(trial: Trial) -> None:
    """Predictions leave no trace, so that test samples are never learned from."""
    method = trial.learned.method
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    first = logits(method)
    if changed := difference(before, method.state_dict()):
        raise MethodCheckError(
            f"predict changed {changed}; a prediction must leave the method as it is, since test samples are "
            "predicted too"
        )
    if not torch.equal(first, logits(method)):
        raise MethodCheckError("predict gave other logits when it was called again with the same samples; draw nothing")


def a_given_task_rules_out_the_others(trial: Trial) -> None:
    """With `task` the class of a sample is among those of the task."""
    method, classes = trial.learned.method, trial.tasks[1].classes
    with torch.no_grad():
        given = method.predict(unseen_inputs(method), classes)
    own = torch.tensor([c in classes for c in method.classes])
    if given.shape[1] != len(own) or not torch.isfinite(given).all() or not own[given.argmax(1)].all():
        raise MethodCheckError(
            f"predict(x, task={classes}) chose a class that is not among them, or gave logits that are not finite or "
            "fewer than all classes; end predict with only_columns(logits, self.classes, task)"
        )


def every_readout_is_the_prediction_of_what_it_is_named_after(trial: Trial) -> None:
    """readouts gives predict under "", and the predictions of the bases under their places."""
    method, x = trial.learned.method, unseen_inputs(trial.learned.method)
    with torch.no_grad():
        readouts = method.readouts(x)
        if "" not in readouts:
            raise MethodCheckError('readouts gives no prediction under ""; that is the name of the method\'s own one')
        for name, found in readouts.items():
            whose = method
            with ExitStack() as levels:
                for _ in name.split(".") if name else ():
                    if not isinstance(whose, MethodOnBase):
                        raise MethodCheckError(f"readouts names '{name}', but the method has no base of that depth")
                    whose = levels.enter_context(whose.base_alone())
                expected = whose.predict(x)
            if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-5, rtol=1e-5):
                raise MethodCheckError(
                    f"the readout '{name}' is not what predict of {type(whose).__name__} gives; readouts come from one "
                    "pass, but must give the same"
                )


def all_state_is_registered(trial: Trial) -> None:
    """No tensor that learning made is kept in a plain attribute, where saving and a kill lose it.

    What is worked out anew from the registered state, such as a solved system that is remembered, is not lost.
    """
    method = trial.learned.method
    again = restored(trial, learned_tensors(method))
    for one in (method, again):
        _predict_in_every_way(one)
    found = unregistered(again)
    for place, tensor in unregistered(method).items():
        if place not in found or not torch.equal(found[place], tensor):
            raise MethodCheckError(
                f"learning left a tensor in 'self.{place}', which state_dict does not have, so it is lost on saving "
                f"and at a kill: {STATE}; a list of modules or parameters is an nn.ModuleList or nn.ParameterList"
            )


def every_stored_tensor_is_contiguous(trial: Trial) -> None:
    """A tensor that is not would come back from its file in another layout, and might round otherwise."""
    loose = [name for name, tensor in trial.learned.method.state_dict().items() if not tensor.is_contiguous()]
    if loose:
        raise MethodCheckError(
            f"'{loose[0]}' is not contiguous in memory; register tensor.contiguous(), or else it rounds otherwise "
            "after coming back from a file"
        )


def saving_and_loading_gives_the_same_predictions(trial: Trial) -> None:
    """A newly built method with the stored state predicts to the same bits."""
    method = trial.learned.method
    again = restored(trial, learned_tensors(method))
    alike = tuple(again.classes) == tuple(method.classes) and torch.equal(logits(again), logits(method))
    if not alike:
        raise MethodCheckError(
            f"a loaded method predicts otherwise than the stored one: {STATE}{lost_values(method, again)}"
        )


def a_loaded_method_learns_on_as_the_original_does(trial: Trial) -> None:
    """Both learn the next task to the same bits."""
    original = copy.deepcopy(trial.learned.method)
    again = restored(trial, learned_tensors(trial.learned.method))
    for method in (original, again):
        learn(method, 3, trial.tasks[3])
    apart = difference(original.state_dict(), again.state_dict())
    if apart or not torch.equal(logits(original), logits(again)):
        raise MethodCheckError(
            f"a loaded method learned the next task otherwise than the one that was stored: {apart or 'the logits'} "
            f"differ. {STATE.capitalize()}; take branches by name, with site.layer.of(name), since loading may have "
            f"made new ones; {DRAWS}{lost_values(original, again)}"
        )


def an_interrupted_learning_ends_with_the_same_bits(trial: Trial) -> None:
    """A process that is killed while the second task is learned goes on in a new one as if nothing had happened."""
    whole = restored(trial, trial.learned.stored_first)
    with scratch_folder() as folder:
        counting = KilledAfter(folder, None)
        learn(whole, 1, trial.tasks[1], counting)
    for left in sorted({counting.written // 2, counting.written - 1} - {0, -1}):
        with scratch_folder() as folder:
            try:
                learn(restored(trial, trial.learned.stored_first), 1, trial.tasks[1], KilledAfter(folder, left))
            except Killed:
                pass
            resumed = learn(restored(trial, trial.learned.stored_first), 1, trial.tasks[1], Checkpoints(folder, 0.0))
        if apart := difference(whole.state_dict(), resumed.state_dict()):
            raise MethodCheckError(
                f"after a kill at checkpoint {left} of {counting.written} the resumed learning ended otherwise: "
                f"{apart} "
                f"differ. Between steps, {STATE}: fit files these, and no plain attribute and no local tensor; what a "
                f"scan fills is named in its `keep`; {DRAWS}{lost_values(whole, resumed)}"
            )


def the_same_seed_gives_the_same_bits(trial: Trial) -> None:
    """Whatever torch's own generator has drawn meanwhile."""
    before = trial.learned.after_second
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)
        method = trial.new()
        for number, task in enumerate(trial.tasks[:2]):
            learn(method, number, task)
    if apart := difference(before, method.state_dict()):
        raise MethodCheckError(f"learned twice with the same seed, {apart} differ; {DRAWS}")


def tasks_may_be_unequal_and_classes_come_back(trial: Trial) -> None:
    """Three classes, one, the first three again, two: all are known in the end, in the order they first came."""
    tasks = tiny_tasks([3, 1, 2], noun=trial.noun)
    method = trial.new()
    for number, i in enumerate([0, 1, 0, 2]):
        learn(method, number, tasks[i])
    expected = tuple(c for task in tasks for c in task.classes)
    if tuple(method.classes) != expected or logits(method).shape[1] != len(expected):
        raise MethodCheckError(
            f"a task whose classes came back gave the classes {tuple(method.classes)} and "
            f"{logits(method).shape[1]} logits; a class keeps its column: {expected}"
        )
    if not torch.isfinite(logits(method)).all():
        raise MethodCheckError("predict gave logits that are not finite after a task whose classes came back")


def _predict_in_every_way(method: Method) -> None:
    """Predict with the method and all that it is built on, so that each remembers what it works out for that."""
    with torch.no_grad():
        method.readouts(unseen_inputs(method))
    whose: Method | None = method
    while whose is not None:
        logits(whose)
        whose = whose.base


CHECKS: tuple[Callable[[Trial], None], ...] = (
    logits_grow_with_the_classes_and_are_finite,
    features_are_one_row_a_sample,
    nothing_stays_trainable,
    the_backbone_changes_only_where_the_method_says_so,
    a_prediction_does_not_depend_on_its_batch,
    predicting_changes_nothing,
    a_given_task_rules_out_the_others,
    every_readout_is_the_prediction_of_what_it_is_named_after,
    every_stored_tensor_is_contiguous,
    all_state_is_registered,
    saving_and_loading_gives_the_same_predictions,
    a_loaded_method_learns_on_as_the_original_does,
    an_interrupted_learning_ends_with_the_same_bits,
    the_same_seed_gives_the_same_bits,
    tasks_may_be_unequal_and_classes_come_back,
)
"""In an order in which the first that fails says most."""
