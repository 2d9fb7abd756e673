"""Every test runs on one thread: results repeat, and two workers do not fight for the cores."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets and weights, where $LAMELLA_DATA names one."""
    root = os.environ.get("LAMELLA_DATA")
    if not root:
        pytest.skip("LAMELLA_DATA is not set: real data and weights are not at hand")
    return Path(root)
