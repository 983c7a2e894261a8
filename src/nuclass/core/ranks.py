"""Which of several processes this one is, where torchrun or srun started them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Started:
    """The processes of a run that were started from outside.

    Attributes
    ----------
    by
        ``torchrun`` | ``srun``, or ``nobody`` where this is a process of its own.
    rank, world_size
        This process's number and how many there are.
    local_rank
        Its number on its machine.
    """

    by: Literal["torchrun", "srun", "nobody"] = "nobody"
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def started_ranks() -> Started:
    """Tell from the environment who started this process, and as which of how many.

    A Slurm step of one task, as Snakemake's jobs are, is a process of its own, and so is the batch script of a job
    with several tasks.
    """
    names = os.environ
    if "TORCHELASTIC_RUN_ID" in names and int(names.get("WORLD_SIZE", 1)) > 1:
        return Started("torchrun", int(names["RANK"]), int(names["WORLD_SIZE"]), int(names["LOCAL_RANK"]))
    if int(names.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in names:
        local = int(names.get("SLURM_LOCALID", 0))
        return Started("srun", int(names["SLURM_PROCID"]), int(names["SLURM_STEP_NUM_TASKS"]), local)
    return Started()
