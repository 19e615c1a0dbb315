"""Assigns rows of the training order to ranks: a pure function of step, rank and the batch's shape.

Row `step * global_batch_size + i` of the order is the i-th sequence of that step, whatever the world size; micro-batch
m of rank r takes rows m x W x B + r x B to + B of the step (W ranks, micro-batches of B). So a resume at any step and
on any number of ranks reads exactly the next rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchOrder:
    """Yields the row indices of one rank, one list for each micro-batch."""

    total_steps: int
    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int
    first_step: int = 0
    """Steps that are trained already."""

    def __len__(self) -> int:
        """Return the micro-batches of the whole run, trained ones included: the Trainer derives its epoch from it."""
        return self.total_steps * self.global_batch_size // (self.micro_batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the row indices of one micro-batch after the other, from the first untrained step."""
        stride = self.micro_batch_size * self.world_size
        for step in range(self.first_step, self.total_steps):
            first = step * self.global_batch_size
            for offset in range(0, self.global_batch_size, stride):
                start = first + offset + self.rank * self.micro_batch_size
                yield list(range(start, start + self.micro_batch_size))
