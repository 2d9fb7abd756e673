"""The merging rules beside those of fusion-bench, where its forms, made for full fine-tuning, mean the same.

They do where updates fill the space: where the ranks of all tasks add up to the smaller width of the weight. Below that
its Iso-C, Iso-CTS and TSV-M take in vectors of the null space; test_merging.py shows how far that leads. Its OPCM is a
method of a class that needs whole models of CLIP; test_merging.py has its step in both forms.
"""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from test_merging import by_rule, normal

from lamella.adapters.pairs import Pair

pytestmark = pytest.mark.slow
pytest.importorskip("fusion_bench", reason="the extra `merging` is not installed")
WIDTH, TASKS = 20, 5


def theirs(module: str) -> Any:
    return importlib.import_module(f"fusion_bench.method.{module}")


def filling() -> tuple[list[Pair], list[dict[str, torch.Tensor]]]:
    """Five updates of rank 4 of a weight of 24 x 20, as pairs and as its task vectors."""
    pairs = [Pair(normal(4, WIDTH, seed=i), normal(24, 4, seed=90 + i)) for i in range(TASKS)]
    return pairs, [{"layer": pair.delta()} for pair in pairs]


def near(found: np.ndarray, wanted: torch.Tensor, tolerance: float = 1e-10) -> bool:
    return bool(np.abs(found - wanted.numpy()).max() < tolerance)


def test_iso_c_is_theirs_where_updates_fill_the_space() -> None:
    pairs, vectors = filling()
    wanted = theirs("isotropic_merging.iso_utils").iso_c(vectors, accelerator="cpu")["layer"]
    assert near(by_rule(pairs, "iso-c"), wanted)


@pytest.mark.parametrize("common", [0.5, 0.8])
def test_iso_cts_is_theirs_where_updates_fill_the_space(common: float) -> None:
    pairs, vectors = filling()
    wanted = theirs("isotropic_merging.iso_utils").iso_cts(vectors, common, accelerator="cpu")["layer"]
    assert near(by_rule(pairs, "iso-cts", common=common), wanted)


def test_tsv_is_theirs_where_updates_fill_the_space() -> None:
    pairs, vectors = filling()
    tools = theirs("task_singular_vector.utils.TSVM_utils")
    wanted = tools.compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu")["layer"]
    assert near(by_rule(pairs, "tsv"), wanted, 1e-4)  # its sums are float32


def test_ties_is_theirs() -> None:
    """It keeps one entry more than its share; 0.3 of 480 entries are 144, so its 143 / 480 are the same ones."""
    pairs, vectors = filling()
    flat = torch.stack([vector["layer"].flatten() for vector in vectors])
    wanted = theirs("ties_merging.ties_merging_utils").ties_merging(flat, reset_thresh=143 / 480, merge_func="mean")
    assert near(by_rule(pairs, "ties", keep=0.3), wanted.view(24, WIDTH))
