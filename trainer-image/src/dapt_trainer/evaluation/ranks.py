"""The ranks of an evaluation: one process is the usual case and needs no process group."""

from __future__ import annotations

import os

import torch

from dapt_trainer.context import StageContext
from dapt_trainer.training.ranks import Ranks, join_ranks


def evaluation_ranks(context: StageContext) -> Ranks:
    """This process among its peers, on its device."""
    if context.world_size > 1:
        return join_ranks(context.rank, context.local_rank, context.world_size)
    on_cpu = not torch.cuda.is_available() or os.environ.get("DAPT_ACCELERATOR") == "cpu"
    return Ranks(0, 0, 1, torch.device("cpu") if on_cpu else torch.device("cuda", context.local_rank))
