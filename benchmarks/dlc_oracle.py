"""What the weighting unit of a dlc run is worth: its gates against those of one who knows each image's task.

    python benchmarks/dlc_oracle.py RUN

The same model, four times: the base alone, all gates 1, the unit's gates, and the gates of an oracle, which are 1 for
the plugin of the image's own task and 0 for all others. The classifier was trained with the unit's gates.
"""

from collections import Counter
from pathlib import Path

import torch
import typer
from torch import Tensor

from lamella.config import build_scenario
from lamella.learner import Learner
from lamella.methods.dlc import DLC


@torch.no_grad()
def main(run: Path) -> None:
    """Accuracy of RUN's last model over all test images, by kind of gates."""
    learner = Learner.load(run / "model")
    method = learner.method.eval()
    if not isinstance(method, DLC):
        raise typer.BadParameter(f"'{run}' is a run of {learner.name}; give one of dlc")
    scenario, fit = build_scenario(learner.config), learner.fit()
    fit.begin("oracle")
    right: Counter[str] = Counter()

    def observe(x: Tensor, y: Tensor) -> None:
        oracle = method.oracle_gates(y)
        forms = {"base": method.base.predict(x), "ones": method.logits(x, torch.ones_like(oracle)),
                 "unit": method.logits(x), "oracle": method.logits(x, oracle)}  # fmt: skip
        columns = method.heads.columns(y)
        right.update({form: int((logits.argmax(1) == columns).sum()) for form, logits in forms.items()})

    tests = [scenario.test(j) for j in range(len(learner.tasks))]
    for test in tests:
        fit.scan(test, observe)
    for form, count in right.items():
        print(f"{form:7s} {count / sum(map(len, tests)):.4f}")


if __name__ == "__main__":
    typer.run(main)
