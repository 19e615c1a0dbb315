"""Divides the work of a measurement over the ranks, and adds up what they found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist

from dapt_contract.stages.common import ModelSpread
from dapt_trainer.distributed import Ranks


@dataclass(frozen=True)
class WorkShare:
    """Says which share of the work this rank computes. Without fields: a single process computes all of it."""

    rank: int = 0
    world_size: int = 1
    """Number of ranks; with several, the process group must exist."""
    ranks_per_share: int = 1
    """Consecutive ranks that compute one share together, because each holds a slice of every matrix: they make the same
    forward passes in the same order. It divides `world_size`."""

    @property
    def index(self) -> int:
        """Return the number of the share that this rank computes."""
        return self.rank // self.ranks_per_share

    @property
    def count(self) -> int:
        """Return the number of shares."""
        return self.world_size // self.ranks_per_share

    @property
    def is_counted(self) -> bool:
        """Return whether this rank is the one of its share whose results enter sums over all ranks."""
        return self.rank % self.ranks_per_share == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all shares, equal on every rank. All ranks call it; `values` may be changed.

        Args:
            values: in float64, on this rank's device: in fp32 a sum of a few million nats would be rounded to a quarter
                of one.
        """
        if self.world_size == 1:
            return values
        # The other ranks of a share have computed the same. One of them counts, so that all ranks go on with the very
        # same bits: a rank that decides otherwise than its peers waits for them in another collective.
        if not self.is_counted:
            values.zero_()
        dist.all_reduce(values)
        return values

    def all_agree(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set on every rank. All ranks call it."""
        if self.world_size == 1:
            return flag
        unset = torch.tensor(float(not flag), device=device)
        dist.all_reduce(unset)
        return float(unset) == 0.0


ALL_WORK: Final = WorkShare()
"""The share of a single process."""


def share_of_work(spread: ModelSpread, ranks: Ranks) -> WorkShare:
    """Return this rank's share of forward passes whose number does not depend on their result.

    The ranks of a tensor parallel model share a replica's work. Under ZeRO 3 each rank has work of its own, and all
    make the same number of forward passes.
    """
    together = spread.ranks_per_model if spread.method == "tensorParallel" else 1
    return WorkShare(ranks.rank, ranks.world_size, together)


def share_of_generation(spread: ModelSpread, ranks: Ranks) -> WorkShare:
    """Return this rank's share of texts to generate: all ranks that share a model generate the same ones.

    A text takes as many forward passes as it gets tokens, and every forward pass needs all ranks of its model; under
    ZeRO 3 these are all ranks of the stage.
    """
    is_whole = spread.ranks_per_model == 1
    together = spread.ranks_per_model if is_whole or spread.method == "tensorParallel" else ranks.world_size
    return WorkShare(ranks.rank, ranks.world_size, together)
