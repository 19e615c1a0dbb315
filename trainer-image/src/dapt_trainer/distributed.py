"""Joins the ranks of a stage and reduces, broadcasts and gathers small values among them.

The set of ranks never changes during a run (static rendezvous): a lost rank ends the run.

Values travel as JSON of a known type, and never by torch's object collectives: those unpickle what a peer sends, and
whoever reaches the port of a rank could run code in it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch has it where distributed is built

from dapt_contract.pod.environment import ACCELERATOR, NODE_NAME, NODE_RANK, PROCESSES_PER_NODE
from dapt_trainer.context import StageContext
from dapt_trainer.errors import InfrastructureError

Value = TypeVar("Value")
_COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Longer than any save or evaluation that one rank waits for; the agent finds hangs by their missing heartbeats."""
MAX_VALUE_BYTES = 64 * 2**20
"""Longest JSON of a value that ranks exchange; a larger one is an error of the program, or of a peer that lies."""
LOOPBACK = "127.0.0.1"
"""Exists in a pod of an IPv6 cluster too."""


@dataclass(frozen=True)
class Ranks:
    """Identifies this process among the ranks of its stage and communicates with them."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    """Group of the collectives; None: the one that `join_ranks` has joined."""

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.world_size > 1:
            dist.barrier(group=self.group)

    def in_background(self) -> Ranks:
        """Return the same ranks with a group of their own on the CPU, for a thread; all ranks call it.

        Collectives of one group must come in one order on every rank, so a thread that exchanges values while training
        does needs another group.
        """
        if self.world_size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=_COLLECTIVE_TIMEOUT)
        if not isinstance(group, dist.ProcessGroup):
            raise RuntimeError("this rank is no member of a group of all ranks")
        return replace(self, device=torch.device("cpu"), group=group)

    def sum(self, *values: float) -> list[float]:
        """Return the sums over all ranks, in fp64; equal on every rank."""
        if self.world_size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals, group=self.group)
        return [float(total) for total in totals.tolist()]

    def sum_on_device(self, *values: torch.Tensor | float) -> list[float]:
        """Return the sums over all ranks, in fp64; equal on every rank.

        Tensors stay on the accelerator until one reading fetches all sums: each reading waits for all that was started.
        """
        parts = [
            value.detach().to(torch.float64)
            if isinstance(value, torch.Tensor)
            # Filled there: a copy of a number in the host's memory would be waited for as well.
            else torch.full((), value, dtype=torch.float64, device=self.device)
            for value in values
        ]
        totals = torch.stack(parts)
        if self.world_size > 1:
            dist.all_reduce(totals, group=self.group)
        return [float(total) for total in totals.tolist()]

    def maximum(self, value: float) -> float:
        """Return the largest of all ranks' values."""
        if self.world_size == 1:
            return value
        largest = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return float(largest.item())

    def from_first(self, compute: Callable[[], Value], value_type: TypeAdapter[Value]) -> Value:
        """Call `compute` on rank 0 alone and return its result on every rank. Meant for small plain values.

        Raises:
            ValueError: what arrived is not of the type.
        """
        if self.world_size == 1:
            return compute()
        value = compute() if self.is_first else None
        content = b"" if value is None and not self.is_first else _to_json(value, value_type)
        size = torch.tensor([len(content)], dtype=torch.int64, device=self.device)
        dist.broadcast(size, src=0, group=self.group)
        buffer = self._buffer(content, _checked_size(int(size.item()), rank=0))
        dist.broadcast(buffer, src=0, group=self.group)
        # Rank 0 parses its own value too: all ranks continue with equal ones.
        return value_type.validate_json(_bytes_of(buffer))

    def gather(self, value: Value, value_type: TypeAdapter[Value]) -> list[Value]:
        """Return every rank's value, in the order of ranks, on every rank. Meant for small plain values.

        Raises:
            ValueError: what arrived is not of the type.
        """
        if self.world_size == 1:
            return [value]
        content = _to_json(value, value_type)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(
            sizes, torch.tensor([len(content)], dtype=torch.int64, device=self.device), group=self.group
        )
        lengths = [_checked_size(int(size.item()), rank=rank) for rank, size in enumerate(sizes)]
        # Padded: a gather needs equal shapes.
        buffers = [self._buffer(b"", max(lengths)) for _ in range(self.world_size)]
        dist.all_gather(buffers, self._buffer(content, max(lengths)), group=self.group)
        return [
            value_type.validate_json(_bytes_of(buffer)[:length])
            for buffer, length in zip(buffers, lengths, strict=True)
        ]

    def _buffer(self, content: bytes, size: int) -> torch.Tensor:
        """Return the content as uint8 [size], with zeros behind it."""
        padded = bytearray(content.ljust(size, b"\0"))
        return torch.frombuffer(padded, dtype=torch.uint8).to(self.device)


def _to_json(value: Value | None, value_type: TypeAdapter[Value]) -> bytes:
    # By json and not by pydantic alone, which writes a float that is no number as null.
    plain = value_type.dump_python(value, mode="json")  # type: ignore[arg-type]  # None where the type has it
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()


def _checked_size(size: int, *, rank: int) -> int:
    if not 0 < size <= MAX_VALUE_BYTES:
        raise ValueError(f"rank {rank} sends a value of {size:,} bytes; the most is {MAX_VALUE_BYTES:,}")
    return size


def _bytes_of(buffer: torch.Tensor) -> bytes:
    return buffer.cpu().numpy().tobytes()


def join_ranks(rank: int, local_rank: int, world_size: int) -> Ranks:
    """Join the process group that torch's launcher announced, or create one for a single process.

    DeepSpeed and accelerate use the group that exists. Without an accelerator everything runs over gloo on the CPU. The
    store of a single process listens on the loopback address alone.

    Raises:
        InfrastructureError: as `choose_device`.
    """
    device = choose_device(local_rank)
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Where this is true, accelerate silently runs without DeepSpeed; `use_cpu` of the arguments is enough.
        os.environ["ACCELERATE_USE_CPU"] = "false"
        _disable_shared_memory_op()
    else:
        # Libraries send from the current device, which must be another one for each rank of a node.
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "gloo" if on_cpu else "nccl"
        # Read by `init_process_group`, and later by DeepSpeed and accelerate.
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world_size)}
        if world_size == 1:
            store = loopback_store(LOOPBACK, 0)
            os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(store.port)}
            dist.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT, store=store, rank=0, world_size=1)
        elif "MASTER_ADDR" in os.environ:
            dist.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT)
        else:
            raise RuntimeError(f"{world_size} ranks, but no MASTER_ADDR: start them with torch's launcher")
    return Ranks(rank, local_rank, world_size, device)


def choose_device(local_rank: int) -> torch.device:
    """Return this rank's accelerator; the CPU where there is none or where DAPT_ACCELERATOR is `cpu`.

    Raises:
        InfrastructureError: DAPT_ACCELERATOR is `gpu`, and this node has fewer than it has ranks.
    """
    _require_devices()
    if not torch.cuda.is_available() or os.environ.get(ACCELERATOR) == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def _require_devices() -> None:
    """Refuse a node that lacks GPUs: alone on the CPU, its ranks would join no peer and the run would hang."""
    if os.environ.get(ACCELERATOR) != "gpu":
        return
    # A driver that is broken counts as no device.
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    needed = int(os.environ.get(PROCESSES_PER_NODE, "1"))
    if visible < needed:
        node = os.environ.get(NODE_RANK, "0")
        name = os.environ.get(NODE_NAME) or socket.gethostname()
        raise InfrastructureError(
            f"preflight: node {node} ({name}) shows {visible} of the {needed} GPUs that its ranks need: look at its "
            "GPUs and their driver (nvidia-smi, dmesg), or cordon the node"
        )


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


def loopback_store(
    host: str, port: int, *, clients: int = 1, timeout: timedelta = _COLLECTIVE_TIMEOUT
) -> TCPStore:
    """Return the server of a store that listens on one loopback address alone, once its clients have come.

    torch's own listens on every address of the machine, and answers whoever asks.

    Args:
        host: a loopback address.
        port: 0 for any free one.
        clients: how many processes to wait for, this one included.
        timeout: of that wait and of the store's requests.

    Raises:
        OSError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    port = int(listener.getsockname()[1])
    # The store closes the descriptor.
    return TCPStore(host, port, clients, True, timeout, master_listen_fd=listener.detach())


def evaluation_ranks(context: StageContext) -> Ranks:
    """Return the ranks of a measuring stage; a single process joins no group, so it needs no DeepSpeed."""
    if context.world_size > 1:
        return join_ranks(context.rank, context.local_rank, context.world_size)
    return Ranks(0, 0, 1, choose_device(context.local_rank))
