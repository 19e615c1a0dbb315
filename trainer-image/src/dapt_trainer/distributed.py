"""Joins the ranks of a stage and reduces, broadcasts and gathers small values among them.

The set of ranks never changes during a run (static rendezvous): a lost rank ends the run.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dapt_contract.pod.environment import ACCELERATOR
from dapt_trainer.context import StageContext

Value = TypeVar("Value")
_COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Longer than any save or evaluation that one rank waits for; the agent finds hangs by their missing heartbeats."""


@dataclass(frozen=True)
class Ranks:
    """Identifies this process among the ranks of its stage and communicates with them."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.world_size > 1:
            dist.barrier()

    def sum(self, *values: float) -> list[float]:
        """Return the sums over all ranks, in fp64; equal on every rank."""
        if self.world_size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return [float(total) for total in totals.tolist()]

    def maximum(self, value: float) -> float:
        """Return the largest of all ranks' values."""
        if self.world_size == 1:
            return value
        largest = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return float(largest.item())

    def from_first(self, compute: Callable[[], Value]) -> Value:
        """Call `compute` on rank 0 alone and return its result on every rank. Meant for small plain values."""
        if self.world_size == 1:
            return compute()
        values: list[Any] = [compute() if self.is_first else None]
        dist.broadcast_object_list(values, src=0, device=self.device)
        value: Value = values[0]
        return value

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in the order of ranks, on every rank. Meant for small plain values."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values


def join_ranks(rank: int, local_rank: int, world_size: int) -> Ranks:
    """Join the process group that torch's launcher announced, or create one for a single process.

    DeepSpeed and accelerate use the group that exists. Without an accelerator everything runs over gloo on the CPU.
    """
    device = choose_device(local_rank)
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Where this is true, accelerate silently runs without DeepSpeed; `use_cpu` of the arguments is enough.
        os.environ["ACCELERATE_USE_CPU"] = "false"
        _disable_shared_memory_op()
    else:
        # `all_gather_object` sends from the current device, which must be another one for each rank of a node.
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if "MASTER_ADDR" not in os.environ:
            if world_size > 1:
                raise RuntimeError(
                    f"{world_size} ranks, but no MASTER_ADDR: start them with torch's launcher"
                )
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        # Read by `init_process_group`, and later by DeepSpeed and accelerate.
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world_size)}
        dist.init_process_group("gloo" if on_cpu else "nccl", timeout=_COLLECTIVE_TIMEOUT)
    return Ranks(rank, local_rank, world_size, device)


def choose_device(local_rank: int) -> torch.device:
    """Return this rank's accelerator; the CPU where there is none or where DAPT_ACCELERATOR is `cpu`."""
    if not torch.cuda.is_available() or os.environ.get(ACCELERATOR) == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def _disable_shared_memory_op() -> None:
    """Make DeepSpeed's CPU collectives use gloo.

    Its own op for them is compiled at first use, which takes half a minute or more and needs a C++ compiler in the
    image (docs/decisions/0001-gloo-on-cpu.md).
    """
    # Imported here: DeepSpeed reads DS_ACCELERATOR when it is imported.
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
    """Return the ranks of a measuring stage; a single process joins no group, so it needs no DeepSpeed."""
    if context.world_size > 1:
        return join_ranks(context.rank, context.local_rank, context.world_size)
    return Ranks(0, 0, 1, choose_device(context.local_rank))
