"""Serves packed sequences as tensors in the training order.

Tensors have the shape [L] with L the sequence length. A label is the token at the same position (the model shifts), or
-100 where nothing is learned: at the first token of a segment, which its own document cannot predict, and at positions
without a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dapt_trainer.data.packing.mixture import Mixture
from dapt_trainer.data.packing.shards import Shard, open_shards
from dapt_trainer.modeling.labels import IGNORED_LABEL


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Returns the i-th sequence of a step as item `step x global_batch_size + i`, on any number of ranks.

    Args:
        shards: as `open_shards` gives them, in the order that the mixture was made with.
        mixture: the order.
        total_steps: optimizer steps of the run.
        global_batch_size: sequences a step.
        document_boundaries: positions restart with each document; without them a row is one long text.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        mixture: Mixture,
        *,
        total_steps: int,
        global_batch_size: int,
        document_boundaries: bool = True,
    ) -> None:
        self._shards = shards
        self._mixture = mixture
        self._length = total_steps * global_batch_size
        self._batch = global_batch_size
        self._boundaries = document_boundaries
        self._step = -1
        self._rows: list[tuple[int, int]] = []

    @classmethod
    def on_work_volume(
        cls, work: Path, *, seed: int, replay_fraction: float, total_steps: int, global_batch_size: int
    ) -> PackedDataset:
        """Open the data that prepare wrote to the work volume.

        Raises:
            InputError: as `open_shards` and `Mixture`.
        """
        shards = open_shards(work)
        mixture = Mixture.of_shards(
            shards, seed=seed, replay_fraction=replay_fraction, global_batch_size=global_batch_size
        )
        return cls(shards, mixture, total_steps=total_steps, global_batch_size=global_batch_size)

    def __len__(self) -> int:
        """Return the number of sequences of the whole run."""
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids`, each int64 [L]."""
        step, number = divmod(index, self._batch)
        # The rows of a step are computed together, and its sequences are read one after the other.
        if step != self._step:
            self._step, self._rows = step, self._mixture.rows(step)
        source, row = self._rows[number]
        packed = self._shards[source].sequence(row)
        labels = packed.input_ids.copy()
        labels[packed.used :] = IGNORED_LABEL
        positions = packed.position_ids
        if self._boundaries:
            # The token before a segment belongs to another document, which does not predict it.
            labels[packed.starts] = IGNORED_LABEL
        else:
            positions = np.arange(len(labels), dtype=np.int64)
        return {
            "input_ids": torch.from_numpy(packed.input_ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }


def stack_packed(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack rows to tensors [rows, L].

    There is no attention mask, because there is no padding: positions show where documents start.
    """
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
