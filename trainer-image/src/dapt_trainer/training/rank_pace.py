"""Finds a rank that is slower than its peers, and its node: in a gang all ranks wait for it in each step.

The time of a whole step is the same on all ranks, because each collective waits for the slowest. So each rank measures
what it does before the first one: the wait for its rows, and the forward pass. Under ZeRO 3 and sequence parallelism
the forward pass has collectives too, and only the wait for rows tells ranks apart.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Sequence
from typing import Final

import torch
from pydantic import TypeAdapter

from dapt_contract.pod.environment import NODE_NAME
from dapt_trainer.context import RankPace
from dapt_trainer.distributed import Ranks

INTERVAL_STEPS: Final = 20
"""How often ranks exchange their times, which costs one small collective."""
LEAST_SHARE: Final = 0.1
"""Share of a step by which a rank is behind the median rank before it is named."""
_PACE: Final = TypeAdapter(RankPace)


class ForwardClock:
    """Measures the first forward pass of each step without waiting for the accelerator."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._started = self._ended = 0.0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._num_passes = 0

    def attach(self, engine: torch.nn.Module) -> None:
        """Measure the passes of this module from now on."""
        engine.register_forward_pre_hook(self._before)
        engine.register_forward_hook(self._after)

    def _before(self, _module: torch.nn.Module, _inputs: object) -> None:
        if self._num_passes:
            return
        if self._is_cuda:
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events[0].record()
        self._started = time.monotonic()

    def _after(self, _module: torch.nn.Module, _inputs: object, _outputs: object) -> None:
        self._num_passes += 1
        if self._num_passes > 1:
            return
        self._ended = time.monotonic()
        if self._events is not None:
            self._events[1].record()

    def reset(self) -> None:
        """Forget the passes so far, which were not of a step: those of a measurement at a checkpoint."""
        self._num_passes = 0

    def take_seconds(self) -> float:
        """Return what all passes of the step took, if each took as long as the first. Call it once the step is done."""
        passes, self._num_passes = self._num_passes, 0
        if not passes:
            return 0.0
        if self._events is not None:
            return passes * float(self._events[0].elapsed_time(self._events[1])) / 1000.0
        return passes * (self._ended - self._started)


class PaceOfRanks:
    """Collects each rank's times and compares them every `INTERVAL_STEPS` steps. All ranks call it equally often."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._node = os.environ.get(NODE_NAME) or socket.gethostname()
        self._sums = [0.0, 0.0, 0.0]
        self._num_steps = 0
        self._suspect: int | None = None
        self.paces: tuple[RankPace, ...] = ()
        """Of each rank over the last interval; empty before the first and with one rank."""
        self.slow_rank = ""
        """The rank that its peers wait for, in one sentence; empty without one."""

    def add(self, data_wait_seconds: float, forward_seconds: float, step_seconds: float) -> None:
        """Add the times of a step of this rank."""
        if self._ranks.world_size == 1:
            return
        times = (data_wait_seconds, forward_seconds, step_seconds)
        self._sums = [total + seconds for total, seconds in zip(self._sums, times, strict=True)]
        self._num_steps += 1
        if self._num_steps < INTERVAL_STEPS:
            return
        wait, forward, step = (total / self._num_steps for total in self._sums)
        self._sums, self._num_steps = [0.0, 0.0, 0.0], 0
        own = RankPace(self._ranks.rank, self._node, wait, forward)
        self.paces = tuple(self._ranks.gather(own, _PACE))
        slowest = slow_rank(self.paces, step)
        # One long step, such as the first after a save, is not yet a slow rank: it must be the same one twice.
        is_repeated = slowest is not None and slowest.rank == self._suspect
        self.slow_rank = sentence(slowest, self.paces, step) if slowest is not None and is_repeated else ""
        self._suspect = None if slowest is None else slowest.rank


def slow_rank(paces: Sequence[RankPace], step_seconds: float) -> RankPace | None:
    """Return the rank that is furthest behind the median one; None where that is not worth a word."""
    slowest = max(paces, key=_seconds)
    return slowest if behind_seconds(slowest, paces) > LEAST_SHARE * step_seconds else None


def behind_seconds(pace: RankPace, paces: Sequence[RankPace]) -> float:
    """Return by how much a rank is behind the median of all; of two ranks, behind the other."""
    return _seconds(pace) - statistics.median_low([_seconds(other) for other in paces])


def sentence(pace: RankPace, paces: Sequence[RankPace], step_seconds: float) -> str:
    """Return what is known of a slow rank."""
    waits = statistics.median_low([other.data_wait_seconds for other in paces])
    return (
        f"rank {pace.rank} on node {pace.node[:100]} is {behind_seconds(pace, paces):.2g} s behind its peers in each"
        f" step of {step_seconds:.2g} s, {max(0.0, pace.data_wait_seconds - waits):.2g} s of it waiting for its rows"
    )


def _seconds(pace: RankPace) -> float:
    return pace.data_wait_seconds + pace.forward_seconds
