"""The trainers as programs: `python`, `torchrun` or `accelerate launch`, then a trainer's file and a config.

They are `genrec train` under another name. The library below does not know the command line: it is imported here,
when a trainer is run, and nowhere else.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

logger = logging.getLogger(__name__)
MPI_NAMES = {
    "RANK": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
}


def run_as_program(model: Literal["tiger", "rqvae"]) -> None:
    """Train from `sys.argv`: a config, then any number of KEY=VALUE."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: {sys.argv[0]} CONFIG [KEY=VALUE ...]")
    name_ranks(os.environ)
    from genrec.cli import train_from_file

    train_from_file(sys.argv[1], sys.argv[2:], model)


def name_ranks(environment: os._Environ[str] | dict[str, str]) -> None:
    """Give the ranks of mpirun, which `accelerate launch --cpu` uses, the names that torch reads.

    Says so when accelerate was asked for several processes and has started one: the result is the same, only later.
    """
    for name, others in MPI_NAMES.items():
        found = next((environment[other] for other in others if other in environment), None)
        if found is not None:
            environment.setdefault(name, found)
    if environment.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in environment and "RANK" not in environment:
        logger.warning(
            "accelerate launch --cpu starts its processes through mpirun (--mpirun_hostfile) and has started one; "
            "going on with it. For several on one machine: torchrun, or accelerate launch --multi_gpu (needs no GPU)"
        )
