"""Measures the links between ranks: from each rank to one on the next node, and an all-reduce over all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InfrastructureError

_ROUNDS = 5
"""Timed rounds of each measurement; their median counts."""
_CLOCK_ROUNDS = 3
_TIME = TypeAdapter(float)


@dataclass(frozen=True)
class LinkEffort:
    """Says how much the measurement of one kind of link may move."""

    first_bytes: int
    """Of a message at the beginning; the next one is as large as `seconds` allow."""
    most_bytes: int
    seconds: float
    """Of all rounds together, as estimated from the first message."""


class Deadline:
    """Ends waits that would take longer than the whole preflight may."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> timedelta:
        """Return the time left, at least a second."""
        return timedelta(seconds=max(1.0, self._end - time.monotonic()))

    def text(self) -> str:
        """Return the whole time, for messages."""
        return f"{self._seconds:g} s"


def peers(ranks: Ranks, ranks_per_node: int) -> tuple[int, int]:
    """Return the rank that this one sends to and the one that it receives from.

    On several nodes every link runs between two of them, so that each rank's network card is used; on one node it runs
    to the next rank.
    """
    distance = ranks_per_node if ranks.world_size > ranks_per_node else 1
    return (ranks.rank + distance) % ranks.world_size, (ranks.rank - distance) % ranks.world_size


def measure_links(ranks: Ranks, ranks_per_node: int, effort: LinkEffort, deadline: Deadline) -> float:
    """Return the bytes a second that this rank receives while all ranks send and receive.

    Raises:
        InfrastructureError: the message of the peer did not arrive in time.
    """
    to, from_ = peers(ranks, ranks_per_node)
    node, sender_node = ranks.rank // ranks_per_node, from_ // ranks_per_node

    def exchange(num_bytes: int) -> None:
        sent = torch.zeros(num_bytes, dtype=torch.uint8, device=ranks.device)
        received = torch.empty_like(sent)
        operations = [dist.P2POp(dist.isend, sent, to), dist.P2POp(dist.irecv, received, from_)]
        try:
            for work in dist.batch_isend_irecv(operations):
                work.wait(deadline.left)
            _synchronize(ranks)
        except RuntimeError as error:
            if not _is_timeout(error):
                raise
            raise InfrastructureError(
                f"preflight: rank {ranks.rank} on node {node} could not exchange {num_bytes:,} bytes with rank {from_} "
                f"on node {sender_node} within {deadline.text()}: look at the network between these nodes, or cordon "
                "one of them"
            ) from error

    num_bytes, seconds = _timed(ranks, exchange, effort, deadline)
    return num_bytes / seconds


def measure_all_reduce(ranks: Ranks, effort: LinkEffort, deadline: Deadline) -> float:
    """Return the bus bandwidth of an all-reduce over all ranks, in bytes a second; equal on every rank.

    It is 2 (n - 1) / n x bytes / seconds, the traffic of each rank in a ring, so that values for different numbers of
    ranks can be compared (as nccl-tests reports it). The slowest rank's time counts.

    Raises:
        InfrastructureError: it did not end in time.
    """

    def reduce(num_bytes: int) -> None:
        values = torch.zeros(num_bytes // 4, dtype=torch.float32, device=ranks.device)
        _all_reduce(ranks, values, deadline)

    num_bytes, seconds = _timed(ranks, reduce, effort, deadline)
    share = 2 * (ranks.world_size - 1) / ranks.world_size
    return share * num_bytes / ranks.maximum(seconds)


def measure_clock_offset(ranks: Ranks) -> float:
    """Return this rank's clock less that of rank 0, in seconds; exact to the time of a barrier."""
    offsets = []
    for _ in range(_CLOCK_ROUNDS):
        ranks.barrier()
        times = ranks.gather(time.time(), _TIME)
        offsets.append(times[ranks.rank] - times[0])
    return statistics.median(offsets)


def _timed(
    ranks: Ranks, transfer: Callable[[int], None], effort: LinkEffort, deadline: Deadline
) -> tuple[int, float]:
    """Return the bytes of a message and this rank's median time for it.

    Every round starts after all ranks have met: otherwise a slow link delays its receiver's next message, and each link
    looks as slow as the slowest one.
    """
    # The first message opens connections, which can take seconds.
    transfer(effort.first_bytes)
    seconds = ranks.maximum(_seconds_of(ranks, transfer, effort.first_bytes, deadline))
    allowed = effort.first_bytes * effort.seconds / _ROUNDS / max(seconds, 1e-6)
    num_bytes = int(min(max(allowed, effort.first_bytes), effort.most_bytes)) // 4 * 4
    rounds = [_seconds_of(ranks, transfer, num_bytes, deadline) for _ in range(_ROUNDS)]
    return num_bytes, max(statistics.median(rounds), 1e-9)


def _seconds_of(ranks: Ranks, transfer: Callable[[int], None], num_bytes: int, deadline: Deadline) -> float:
    _all_reduce(ranks, torch.zeros(1, device=ranks.device), deadline)
    started = time.monotonic()
    transfer(num_bytes)
    return time.monotonic() - started


def _all_reduce(ranks: Ranks, values: torch.Tensor, deadline: Deadline) -> None:
    try:
        work = dist.all_reduce(values, async_op=True)
        if work is not None:
            work.wait(deadline.left)
        _synchronize(ranks)
    except RuntimeError as error:
        if not _is_timeout(error):
            raise
        raise InfrastructureError(
            f"preflight: an all-reduce of {values.nbytes:,} bytes over {ranks.world_size} ranks did not end within "
            f"{deadline.text()}: look at the network of the nodes"
        ) from error


def _synchronize(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def _is_timeout(error: RuntimeError) -> bool:
    """Return whether a transfer took too long; any other error is the echo of a peer that ended, which says why."""
    # torch raises the same class for both, and each backend has its own words.
    return any(words in str(error).lower() for words in ("timed out", "timeout"))
