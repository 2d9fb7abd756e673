"""How often images of classes that were never learned are called unknown, and how often known ones are, by mistake.

    python benchmarks/unknown.py
    LAMELLA_DATA=DIR python benchmarks/unknown.py --config cifar100-part method.name=nearest-mean method.align=true

The first half of a configuration's tasks is learned, a fifth of each training part held back for the record that
`lamella learn` keeps. Then the test images of these tasks (known) and of the others (never learned) are given a
familiarity, and 100 images of random pixels beside them. Nothing is chosen on them: the threshold is a share of known
images, fixed before.
"""

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.common.progress import bars
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, PixelArray
from lamella.learner.config.document import build_scenario, load_config
from lamella.learner.learner import Learner


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None, config: str = "digits"
) -> None:
    """Learn, and count."""
    table = load_config(config, ["scenario.validation=0.2", *(overrides or [])])
    scenario, learner = build_scenario(table), Learner(table)
    learned = len(scenario) // 2
    for i in range(learned):
        learner.learn(scenario[i], held_back=scenario[i].validation, progress=bars)

    def familiarity(tasks: range) -> Tensor:
        every = [p.familiarity for i in tasks for p in learner.predict(scenario.test(i), top=1)]
        return torch.tensor([f for f in every if f is not None], dtype=torch.float64)

    known, other = familiarity(range(learned)), familiarity(range(learned, len(scenario)))
    noise = ImageSet.unlabelled(PixelArray(torch.rand(100, 3, 64, 64, generator=generator(0, "noise")).mul(255).byte()))
    unlike = torch.tensor([p.familiarity or 0.0 for p in learner.predict(noise, top=1)], dtype=torch.float64)
    below = (other[:, None] < known).double().mean() + (other[:, None] == known).double().mean() / 2
    title = f"{learner.name} on {config}: {learned} of {len(scenario)} tasks learned"
    heads = f"known called unknown, of {len(known)}", f"never learned, of {len(other)}", f"noise, of {len(unlike)}"
    page = Table("familiarity below", *heads, title=title)
    for threshold in (0.01, 0.05, 0.1, 0.2):
        shares = [float((part < threshold).double().mean()) for part in (known, other, unlike)]
        page.add_row(f"{threshold}", *(f"{share:.1%}" for share in shares))
    Console(width=100).print(page)
    print(f"area under the ROC curve {float(below):.3f}; temperature {learner.confidence.temperature:.2f}")


if __name__ == "__main__":
    typer.run(main)
