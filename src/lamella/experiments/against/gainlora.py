"""GainLoRA: gates, and what is protected of the inputs of layers and gates over several tasks."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lamella.common.randomness import generator
from lamella.experiments.against.checkout import Checkout
from lamella.experiments.against.inflora import DECAYS, TASKS, WIDTH, random_moment
from lamella.experiments.against.rows import Row
from lamella.experiments.against.small import draw, largest
from lamella.memory.gates import Gate
from lamella.memory.subspace import Subspace
from lamella.methods.shared.free_directions import EnergyRule

__all__ = ["rows"]

NETWORKS = ("src/t5_gainlora_inflora.py", "src/t5_large.py")
"""What the file of the network is called in newer and older commits."""
HIDDEN, GATES = 10, 3
ENERGY, GATE_ENERGY, HORIZON = 0.97, 0.95, 15


def rows(checkout: Checkout) -> list[Row]:
    """Compare `T5Stack.cal_attention`, `Trans_input` and `GainLoRA_InfLoRA_Trainer.get_repsentation` with ours."""
    return [_gates(checkout), *_spaces(checkout)]


def _gates(checkout: Checkout) -> Row:
    """Compare gates of the form "cosine"."""
    file = next((name for name in NETWORKS if (checkout.path / name).is_file()), NETWORKS[0])
    score = checkout.take(file, "T5Stack.cal_attention")
    perceptron = checkout.take(file, "Trans_input")(WIDTH, HIDDEN, GATES)
    spaces = [Subspace(width) for width in (WIDTH, HIDDEN, WIDTH)]
    gates, keys = [Gate(WIDTH, HIDDEN, "cosine") for _ in range(GATES)], []
    for number, gate in enumerate(gates):
        gate.start(None, spaces, generator(0, "against", "gate", number))
        perceptron.input_linear.data[number], perceptron.output_linear.data[number], key = gate.matrices
        keys.append(key)
    p = 3 * draw(40, WIDTH, name="pooled")
    stack = SimpleNamespace(prompt_config={"attn_temperature": 1}, model_dim=WIDTH)
    found = score(stack, torch.stack(keys, 1).expand(len(p), -1, -1), perceptron(p[:, None]))
    ours = torch.stack([gate(p) for gate in gates], 1)
    return Row('gates, gate_form="cosine"', f"{GATES} gates, random samples", largest(ours, found[:, :, 0]), 1e-5)


def _spaces(checkout: Checkout) -> list[Row]:
    arrays = {"cp": _CUPY, "fromDlpack": _array, "to_dlpack": _same, "from_dlpack": _same, "os": os}
    loaders: dict[str, Any] = dict.fromkeys(("DataLoader", "DistributedSampler", "IterableDatasetShard"), int)
    protect = checkout.take(
        "src/cl_trainer_gainlora_inflora.py", "GainLoRA_InfLoRA_Trainer.get_repsentation", **arrays, **loaders
    )
    rules = [EnergyRule(energy, "moment", HORIZON) for energy in (ENERGY, *3 * (GATE_ENERGY,))]
    dimensions = projectors = 0.0
    for decay in DECAYS:
        state: Any = SimpleNamespace(feature_list=[], feature_trans_list=[])
        spaces = [Subspace(WIDTH) for _ in rules]  # of a layer, and of the three matrices of gates
        for task in range(TASKS):
            moments = [random_moment(decay, seed, task) for seed in range(len(rules))]
            theirs = _protected(protect, state, moments, task)
            for rule, space, G, kept in zip(rules, spaces, moments, theirs, strict=True):
                rule.protect(space, G, task, first=task == 0)
                dimensions = max(dimensions, abs(kept.shape[1] - space.dimension))
                ours = space.inside(torch.eye(WIDTH).double())
                projectors = max(projectors, float((kept.double() @ kept.double().T - ours).norm()))
    on = f'{TASKS} tasks of random inputs, {len(DECAYS)} spectra, energy_of="moment"'
    return [
        Row("dimensions of the protected spaces", on, dimensions, 0.0),
        Row("projectors on them (Frobenius norm)", on, projectors, 1e-3),
    ]


def _protected(protect: Any, state: Any, moments: list[Tensor], task: int) -> list[Tensor]:
    """Return their bases for a layer and for the three matrices of gates, after a task with these second moments."""
    of_layer, first, second, third = moments
    layer = SimpleNamespace(get_feature=False, stage=0, matrix={0: of_layer}, index=1)
    encoder = SimpleNamespace(
        index=1, matrix_trans_1={0: first}, matrix_trans_2=second, matrix_trans_3={0: third}, get_trans_feature=False
    )
    state.model = SimpleNamespace(named_modules=lambda: [("layer", layer)], encoder=encoder)
    state.get_train_dataloader = list  # the moments are there already
    state.load_previous_reg_matrix = lambda: (state.feature_list, state.feature_trans_list, task)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "task"
        out.mkdir()
        state.args = SimpleNamespace(threshold=ENERGY, transthreshold=GATE_ENERGY, chunk=1, output_dir=str(out))
        protect(state)
    one, two, three = state.feature_trans_list
    return [state.feature_list[0][0], one[0], two, three[0]]


class _Array(torch.Tensor):
    """What stands for an array of CuPy, which is not needed here."""

    def toDlpack(self) -> Tensor:
        return self.as_subclass(torch.Tensor)


def _array(x: Tensor) -> Tensor:
    return x.as_subclass(_Array)


def _same(x: Tensor) -> Tensor:
    return x


def _svd(x: Tensor, full_matrices: bool = True) -> tuple[Tensor, ...]:
    return tuple(_array(part) for part in torch.linalg.svd(x.as_subclass(torch.Tensor), full_matrices=full_matrices))


_CUPY = SimpleNamespace(linalg=SimpleNamespace(svd=_svd), dot=torch.mm, hstack=torch.hstack)
