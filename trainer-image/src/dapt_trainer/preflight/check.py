"""Runs the preflight of a stage, once its ranks have joined and before they load anything."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from pydantic import TypeAdapter

from dapt_contract.pod.preflight import PreflightReading
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.distributed import Ranks, join_ranks
from dapt_trainer.errors import InfrastructureError
from dapt_trainer.preflight.findings import RankFindings, judge
from dapt_trainer.preflight.links import (
    Deadline,
    LinkEffort,
    measure_all_reduce,
    measure_clock_offset,
    measure_links,
    peers,
)
from dapt_trainer.preflight.machine import reason_for_sockets, shared_memory_bytes
from dapt_trainer.preflight.volume import VolumeSpeed, measure_volume

logger = logging.getLogger(__name__)
LONGEST_SECONDS = 60.0
"""No transfer between ranks waits longer than so much after the preflight began."""
_FINDINGS = TypeAdapter(RankFindings)
_MIB = 2**20


@dataclass(frozen=True)
class _Effort:
    """Says how much a preflight moves, by what the stage is about to hold."""

    links: LinkEffort
    volume_bytes: int
    volume_seconds: float


_TRAINING_ON_GPUS = _Effort(LinkEffort(4 * _MIB, 256 * _MIB, 2.0), 512 * _MIB, 5.0)
_MEASURING_ON_GPUS = _Effort(LinkEffort(4 * _MIB, 64 * _MIB, 0.5), 64 * _MIB, 1.0)
_ON_CPU = _Effort(LinkEffort(_MIB // 4, 4 * _MIB, 0.03), 2 * _MIB, 0.05)
"""Proportionate to a toy: a laptop pays a fraction of a second, most of it for making the file durable."""


def training_ranks(context: StageContext) -> Ranks:
    """Join the ranks of a stage that trains, run its preflight, and return them.

    Raises:
        InfrastructureError: a GPU is missing, or as `run_preflight`.
        OSError: as `run_preflight`.
    """
    ranks = join_ranks(context.rank, context.local_rank, context.world_size)
    run_preflight(context, ranks, is_training=True)
    return ranks


def run_preflight(context: StageContext, ranks: Ranks, *, is_training: bool) -> PreflightReading | None:
    """Measure links, shared memory, the work volume and clocks, publish the numbers, and judge them; all ranks call it.

    Missing devices are found earlier: `choose_device` refuses them before the ranks join.

    Args:
        context: of the stage; None is returned where it has no preflight.
        ranks: of the stage.
        is_training: whether it holds its accelerators for long; a measuring stage moves less.

    Raises:
        InfrastructureError: a link is dead, or something is worse than the profile accepts; equal on all ranks.
        OSError: the work volume cannot be written.
    """
    if context.preflight is None:
        return None
    bounds, ranks_per_node = context.preflight.bounds, max(1, context.preflight.ranks_per_node)
    uses_gpus = ranks.device.type == "cuda"
    effort = (_TRAINING_ON_GPUS if is_training else _MEASURING_ON_GPUS) if uses_gpus else _ON_CPU
    context.progress.update(activity="preflight: measuring links, volume and clocks")
    started = time.monotonic()
    with keep_alive(context.progress, longest_seconds=3 * LONGEST_SECONDS):
        # 1. Links first: a dead one is then named by its own ends, and not by whatever waits for all ranks.
        received = all_reduce = peer = None
        if ranks.world_size > 1:
            deadline = Deadline(LONGEST_SECONDS)
            received = measure_links(ranks, ranks_per_node, effort.links, deadline)
            _, peer = peers(ranks, ranks_per_node)
            all_reduce = measure_all_reduce(ranks, effort.links, deadline)

        # 2. The volume, on all nodes at once: that is how checkpoints are written.
        node = ranks.rank // ranks_per_node
        volume = VolumeSpeed()
        if ranks.rank % ranks_per_node == 0:
            volume = measure_volume(
                context.try_folder,
                most_bytes=effort.volume_bytes,
                most_seconds=effort.volume_seconds,
                name=f".preflight-{node}",
            )

        # 3. Every rank judges the findings of all, so that each pod names the same cause.
        finding = RankFindings(
            rank=ranks.rank,
            node=node,
            node_name=context.preflight.node_name,
            peer=peer,
            received_bytes_per_second=received,
            clock_offset_seconds=measure_clock_offset(ranks),
            shared_memory_bytes=shared_memory_bytes(),
            write_bytes_per_second=volume.write_bytes_per_second,
            read_bytes_per_second=volume.read_bytes_per_second,
            reason_for_sockets=reason_for_sockets() if uses_gpus else "",
        )
        findings = ranks.gather(finding, _FINDINGS)
    judgement = judge(
        findings,
        bounds,
        all_reduce_bytes_per_second=all_reduce,
        seconds=time.monotonic() - started,
        uses_gpus=uses_gpus,
    )
    if ranks.is_first:
        context.progress.update(preflight=judgement.reading)
        logger.info("preflight: %s", text_of(judgement.reading))
        for warning in judgement.reading.warnings:
            logger.warning("preflight: %s", warning)
    if judgement.failures:
        raise InfrastructureError(*judgement.failures)
    return judgement.reading


def text_of(reading: PreflightReading) -> str:
    """Return the numbers of a reading in one line."""
    numbers = [
        ("all-reduce", reading.all_reduce_bytes_per_second, 2**30, "GiB/s"),
        ("slowest link", reading.point_to_point_bytes_per_second, 2**30, "GiB/s"),
        ("/dev/shm", reading.shared_memory_bytes, _MIB, "MiB"),
        ("volume write", reading.write_bytes_per_second, _MIB, "MiB/s"),
        ("volume read", reading.read_bytes_per_second, _MIB, "MiB/s"),
        ("clock difference", reading.clock_difference_seconds, 1, "s"),
    ]
    parts = [
        f"{name} {value / unit:,.4g} {label}" for name, value, unit, label in numbers if value is not None
    ]
    return ", ".join([*parts, f"in {reading.seconds:.2f} s"])
