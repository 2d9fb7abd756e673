"""What a launcher of several processes says of this one: `torchrun`, or `srun` on SLURM."""

import os
import re
from typing import NamedTuple

__all__ = ["Launched", "first_node", "launched"]


class Launched(NamedTuple):
    """What a launcher says of this process.

    Attributes:
        number: from 0 to `count` - 1.
        count: how many processes there are in all.
        local: its number among those of its machine.
    """

    number: int = 0
    count: int = 1
    local: int = 0


def launched() -> Launched:
    """Return what `torchrun` or `srun` says in the environment; one process where neither has started it.

    >>> launched()
    Launched(number=0, count=1, local=0)
    """
    told = os.environ
    if "RANK" in told and "WORLD_SIZE" in told:
        return Launched(int(told["RANK"]), int(told["WORLD_SIZE"]), int(told.get("LOCAL_RANK", told["RANK"])))
    # Not SLURM_NTASKS, which a batch script has, too, before any `srun` in it.
    if int(told.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return Launched(*(int(told[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID")))
    return Launched()


def first_node(nodes: str) -> str:
    """Return the first name of a list of SLURM.

    >>> first_node("gpu[003-005,9],cpu7"), first_node("login1,login2")
    ('gpu003', 'login1')
    """
    found = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
