"""Makes the files of this folder; run with lamella 0.1.0 as it was before its files moved into rooms.

    PYTHONPATH=src:tests python make.py FOLDER

Leaves in FOLDER: two archives of images, a model that learned the first and was interrupted while it learned the
second, a run that was interrupted within its second task, what both come to when that same version goes on, and the
names and shapes of all that each method keeps.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEARN = ["method.blocks=1", "method.epochs=2", "method.batch_size=8", "fit.device=cpu", "fit.checkpoint_seconds=0"]
RUN = [
    "scenario.per_class=8", "scenario.classes=4", "scenario.tasks=2", "method.blocks=1", "method.epochs=2",
    "method.batch_size=8", "fit.device=cpu", "fit.checkpoint_seconds=0",
]  # fmt: skip


class Killed(Exception):
    pass


def archive(path: Path, classes: list[str], seed: int) -> None:
    draws = np.random.default_rng(seed)
    colours = draws.integers(40, 216, (len(classes), 1, 1, 3))
    labels = np.repeat(np.arange(len(classes)), 10)
    noise = draws.integers(-30, 30, (len(labels), 8, 8, 3))
    x = (colours[labels] + noise).astype(np.uint8)
    test = np.arange(len(labels)) % 5 == 0
    np.savez_compressed(path, x_train=x[~test], y_train=labels[~test], x_test=x[test], y_test=labels[test],
                        names=np.array(classes))  # fmt: skip


def command(*arguments: object) -> None:
    from lamella.cli import main

    sys.argv = ["lamella", *map(str, arguments)]
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise RuntimeError(arguments) from left


def interrupted(after: int, *arguments: object) -> None:
    """The command, killed once it has written so many checkpoints."""
    from lamella.checkpoints import Checkpoints

    plain, count = Checkpoints.save, 0

    def save(self: Any, *given: Any) -> None:
        nonlocal count
        plain(self, *given)
        count += 1
        if count == after:
            raise Killed

    Checkpoints.save = save
    try:
        command(*arguments)
        raise AssertionError("it ended")
    except Killed:
        pass
    finally:
        Checkpoints.save = plain


def logits(model: Path, archive: Path) -> list[list[float]]:
    from lamella import Learner, load_source

    learner, test = Learner.load(model), load_source(str(archive)).test
    rows: list[torch.Tensor] = []
    learner.method.eval()
    learner.fit().scan(test, lambda x, y: rows.append(learner.method.predict(x)))
    return [[round(v, 4) for v in row] for row in torch.cat(rows).tolist()]


def states() -> dict[str, dict[str, list[int]]]:
    """By method, with its parts where it can have them: names and shapes of what it keeps after two tasks."""
    from lamella.compose import PARTS
    from lamella.store import learned_state
    from streams import build, learn_all, stream

    from lamella.methods import METHODS

    found: dict[str, dict[str, list[int]]] = {}
    for name in [*METHODS, "inflora+align", "inflora+calibrate", "seq-lora+calibrate+align"]:
        plain, *parts = name.split("+")
        method = build(plain, 0)
        for part in parts:
            method = PARTS[part](method, seed=0)
        learn_all(method, stream(4, 2))
        found[name] = {key: list(value.shape) for key, value in sorted(learned_state(method).items())}
    return found


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    archive(out / "first.npz", ["red", "green"], 1)
    archive(out / "second.npz", ["blue", "grey"], 2)
    expected: dict[str, Any] = {}
    command("learn", out / "model", out / "first.npz", *LEARN)
    expected["model"] = logits(out / "model", out / "first.npz")
    interrupted(7, "learn", out / "model", out / "second.npz")
    shutil.copytree(out / "model", out / "ended")
    command("learn", out / "ended", out / "second.npz")
    expected["learned on"] = logits(out / "ended", out / "second.npz")
    shutil.rmtree(out / "ended")
    interrupted(16, "run", "digits", *RUN, "--out", out / "run")
    shutil.copytree(out / "run", out / "ended")
    command("run", "digits", *RUN, "--out", out / "ended", "--resume")
    results = json.loads((out / "ended" / "results.json").read_text())
    expected["run"] = {k: results[k] for k in ("final_accuracy", "average_accuracy", "forgetting", "matrix", "curve")}
    shutil.rmtree(out / "ended")
    (out / "states.json").write_text(json.dumps(states()) + "\n")
    (out / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
