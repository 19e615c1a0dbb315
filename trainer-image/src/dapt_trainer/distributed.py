"""The ranks of a stage: joining them, agreeing on a few numbers, and doing things one after the other.

All ranks of a run are always there from its start to its end (static rendezvous): a lost one ends the run.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dapt_trainer.context import StageContext

Value = TypeVar("Value")
_COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Longer than any save or evaluation that one rank waits for; hangs are the heartbeat watcher's business."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in fp64; equal on every rank."""
        if self.world_size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return [float(total) for total in totals.tolist()]

    def maximum(self, value: float) -> float:
        """The largest of all ranks' values."""
        if self.world_size == 1:
            return value
        largest = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return float(largest.item())

    def from_first(self, value: object) -> object:
        """Rank 0's value on every rank. Meant for small plain values."""
        if self.world_size == 1:
            return value
        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in the order of ranks, on every rank. Meant for small plain values."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found


def join_ranks(rank: int, local_rank: int, world_size: int) -> Ranks:
    """Join the process group that torch's launcher declared; a lone process makes its own.

    DeepSpeed and accelerate find the group and use it. Without an accelerator everything runs over gloo on the CPU.
    """
    on_cpu = not torch.cuda.is_available() or os.environ.get("DAPT_ACCELERATOR") == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # accelerate leaves DeepSpeed out in silence where this is true; `use_cpu` says what is needed.
        os.environ["ACCELERATE_USE_CPU"] = "false"
        _leave_out_shared_memory_op()
    device = torch.device("cpu") if on_cpu else torch.device("cuda", local_rank)
    if not on_cpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if "MASTER_ADDR" not in os.environ:
            if world_size > 1:
                raise RuntimeError(
                    f"{world_size} ranks, but no MASTER_ADDR: start them with torch's launcher"
                )
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world_size)}
        dist.init_process_group("gloo" if on_cpu else "nccl", timeout=_COLLECTIVE_TIMEOUT)
    return Ranks(rank, local_rank, world_size, device)


def _leave_out_shared_memory_op() -> None:
    """Let DeepSpeed's CPU collectives go over gloo.

    Its own op for them is compiled at first use, for half a minute or more, and wants a C++ compiler in the image
    (docs/decisions/0001-gloo-on-cpu.md).
    """
    import deepspeed.ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # DeepSpeed fills this table at its first use, by running the compiler for every op; it reads this entry alone.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})[ShareMemCommBuilder.NAME] = False


def leave_ranks() -> None:
    """Close the process group at the end of a stage."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def evaluation_ranks(context: StageContext) -> Ranks:
    """This process among its peers, on its device."""
    if context.world_size > 1:
        return join_ranks(context.rank, context.local_rank, context.world_size)
    on_cpu = not torch.cuda.is_available() or os.environ.get("DAPT_ACCELERATOR") == "cpu"
    return Ranks(0, 0, 1, torch.device("cpu") if on_cpu else torch.device("cuda", context.local_rank))
