"""How far the weights of two models are apart, tensor by tensor, in shares of the largest number of each.

    lamella run digits --out runs/one
    torchrun --nproc-per-node 2 -m lamella run digits --out runs/two
    python benchmarks/weights_apart.py runs/one/model runs/two/model

Rows of a weight matrix are told one by one, because a few of them may be all that differs. Kept directions are a basis,
which may be turned; their projections are compared.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lamella.learner.store.versions import load_model


def main(
    one: Annotated[Path, typer.Argument(help="The folder of a model.")],
    other: Annotated[Path, typer.Argument(help="Another one, of the same method.")],
    most: Annotated[int, typer.Option(help="How many rows of the table, those furthest apart.")] = 8,
) -> None:
    """Print the tensors that are furthest apart."""
    first, second = (load_model(folder)[0] for folder in (one, other))
    if first.keys() != second.keys():
        raise typer.BadParameter("the two models keep different tensors")
    rows = {name: apart(name, a, second[name]) for name, a in first.items() if a.is_floating_point() and a.numel()}
    page = Table("tensor", "largest row", "second largest", "rows")
    for name, found in sorted(rows.items(), key=lambda item: -float(item[1][0]))[:most]:
        page.add_row(name, *(f"{float(found[i]):.1e}" if i < len(found) else "" for i in (0, 1)), str(len(found)))
    Console(width=120).print(page)


def apart(name: str, a: Tensor, b: Tensor) -> Tensor:
    """(rows,) the largest difference in each row of two tensors, as a share of their largest number; largest first."""
    if name.endswith(".vectors"):
        a, b = a @ a.T, b @ b.T
    rows = (a.double() - b.double()).abs().reshape(len(a) if a.dim() > 1 else 1, -1).amax(1)
    return torch.sort(rows / a.double().abs().max().clamp_min(1e-6), descending=True).values


if __name__ == "__main__":
    typer.run(main)
