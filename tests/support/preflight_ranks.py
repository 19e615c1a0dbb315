"""What two ranks do that run a preflight on one machine, each as if it were a node of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dapt_contract.pod.preflight import PreflightBounds
from dapt_trainer.context import PreflightSettings, ReadingValue, SilentProgress, StageContext
from dapt_trainer.distributed import leave_ranks
from dapt_trainer.errors import InfrastructureError
from dapt_trainer.preflight.check import training_ranks
from support.toy_training import make_context, pretrain_config


class Readings(SilentProgress):
    """Keeps what a stage shows."""

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}

    def update(self, **fields: ReadingValue) -> None:
        self.shown |= fields


def context_of(
    work: Path, rank: int, world_size: int, bounds: PreflightBounds, progress: SilentProgress
) -> StageContext:
    made = make_context(
        work, work / "scratch", pretrain_config(), progress=progress, rank=rank, world_size=world_size
    )
    settings = PreflightSettings(bounds, ranks_per_node=1, node_name=f"host-{rank}")
    return StageContext(**{**made.__dict__, "preflight": settings})


def measure(rank: int, world_size: int, work: Path, bounds: dict[str, float]) -> int:
    """Run a preflight, and write what it shows and how it fails."""
    progress = Readings()
    context = context_of(work, rank, world_size, PreflightBounds(**bounds), progress)
    failures: list[str] = []
    try:
        training_ranks(context)
    except InfrastructureError as error:
        failures = list(error.problems)
    reading = progress.shown.get("preflight")
    found = {"failures": failures, "reading": reading.model_dump() if reading else None}
    (work / f"found-{rank}.json").write_text(json.dumps(found))
    leave_ranks()
    return 0


def talk_to_nobody(rank: int, world_size: int, work: Path) -> int:
    """Exchange messages with a rank that joins and never sends: rank 1 only waits to be let go."""
    import time

    from dapt_trainer.distributed import join_ranks
    from dapt_trainer.preflight.links import Deadline, LinkEffort, measure_links

    ranks = join_ranks(rank, rank, world_size)
    done = work / "done"
    if rank == 1:
        while not done.exists():
            time.sleep(0.02)
        return 0
    try:
        measure_links(ranks, 1, LinkEffort(1024, 1024, 0.01), Deadline(1.0))
    except InfrastructureError as error:
        (work / "said").write_text(str(error))
    done.touch()
    return 0
