"""Which test samples each readout of a run had right after the last task, kept in `OUT/right.npz`.

An array for each readout, by its name as in result files: (n,) bool, in the order of the tasks and of their samples, so
that runs with the same split have the same sample at the same place. Its mean is the final accuracy: where the task is
given at test time, a sample is right among the classes of its task.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lamella.common.files import write_atomic

__all__ = ["read_right", "write_right"]

FILE = "right.npz"


def write_right(out: Path, right: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> None:
    """Write the file of a run.

    Args:
        out: the run directory.
        right: of each task, by readout as `score_task` names them, (n,) bool.
        names: the names of the readouts in result files, from the method itself down to its innermost base.
    """
    page = io.BytesIO()
    arrays = {
        names[len(key.split(".")) if key else 0]: np.concatenate([task[key].numpy() for task in right])
        for key in right[-1]
    }
    np.savez_compressed(page, allow_pickle=False, **arrays)
    write_atomic(out / FILE, page.getvalue())


def read_right(out: Path, method: str) -> npt.NDArray[np.bool_] | None:
    """Read which samples a readout had right, (n,) bool.

    It is None where the run did not keep it, as older versions did not, or where the file is damaged.

    Args:
        out: the run directory.
        method: the name of the readout.
    """
    try:
        with (out / FILE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays[method].astype(bool) if method in arrays else None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
