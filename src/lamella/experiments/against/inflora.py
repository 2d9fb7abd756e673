"""InfLoRA: the protected spaces of DualGPM over several tasks, and the schedule of the learning rate."""

from types import SimpleNamespace

import torch
from torch import Tensor

from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import draw
from lamella.memory.subspace import Subspace
from lamella.methods.shared.free_directions import EnergyRule
from lamella.training.schedules import SCHEDULES

__all__ = ["DECAYS", "TASKS", "WIDTH", "random_moment", "rows", "schedule_row"]

WIDTH, TASKS, ENERGY = 48, 6, 0.95
DECAYS = (0.6, 0.75, 0.85, 0.9)
SEEDS = 2
EPOCHS = (2, 5, 20, 50)


def rows(checkout: Checkout) -> list[Row]:
    """Compare `InfLoRA.update_DualGPM` and `CosineSchedule` with ours."""
    update = checkout.take("methods/inflora.py", "InfLoRA.update_DualGPM")
    dimensions = projectors = 0.0
    for decay in DECAYS:
        for seed in range(SEEDS):
            # What they call lamb and lame are the protected shares at the first and after the last task.
            theirs = SimpleNamespace(lamb=ENERGY, lame=1.0, total_sessions=TASKS, feature_list=[], project_type=[])
            rule, space = EnergyRule(ENERGY, "moment", TASKS), Subspace(WIDTH)
            for task in range(TASKS):
                moment, theirs._cur_task = random_moment(decay, seed, task), task
                update(theirs, [moment.numpy()])
                rule.protect(space, moment, task, first=task == 0)
                kept = torch.as_tensor(theirs.feature_list[0]).double()
                count, P = kept.shape[1], kept @ kept.T
                if theirs.project_type[0] == "retain":
                    count, P = WIDTH - count, torch.eye(WIDTH).double() - P
                ours = space.inside(torch.eye(WIDTH).double())
                dimensions = max(dimensions, abs(count - space.dimension))
                projectors = max(projectors, float((P - ours).norm()))
    on = f"{TASKS} tasks of random inputs, {len(DECAYS)} spectra, {SEEDS} seeds, also past the change of form"
    return [
        Row("dimensions of the protected spaces", on, dimensions, 0.0),
        Row("projectors on them (Frobenius norm)", on, projectors, 1e-3),
        schedule_row(checkout),
    ]


def random_moment(decay: float, seed: int, task: int) -> Tensor:
    """Return the second moment (d, d) of inputs whose directions fall off by this factor."""
    name = f"inputs {decay} {seed} {task}"
    turned = torch.linalg.qr(draw(WIDTH, WIDTH, name=f"turn {seed} {task}"))[0]
    X = draw(400, WIDTH, name=name) * decay ** torch.arange(WIDTH) @ turned
    return X.T @ X / len(X)


def schedule_row(checkout: Checkout) -> Row:
    """Compare `CosineSchedule` with our "inflora-code"."""
    schedule, difference = checkout.module("utils/schedulers.py").CosineSchedule, 0.0
    for epochs in EPOCHS:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = schedule(optimizer=optimizer, K=epochs)
        for epoch in range(epochs):
            rate = optimizer.param_groups[0]["lr"]
            difference = max(difference, abs(rate - SCHEDULES["inflora-code"](epoch, epochs)))
            optimizer.step()
            theirs.step()
    return Row("learning rate", f"{', '.join(map(str, EPOCHS))} epochs", difference, 1e-6)
