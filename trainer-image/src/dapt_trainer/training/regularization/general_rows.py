"""Reads general training sequences in an order of their own, for the Fisher information and for the divergence.

They come from the shards that training may read, never from held-out text; with `generalUse: measure` the training
mixture does not read them, but the penalties do. Sources keep their weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from dapt_trainer.data.packing.data_manifest import DataManifest
from dapt_trainer.data.packing.mixture import Mixture
from dapt_trainer.data.packing.shards import open_shards
from dapt_trainer.data.packing.torch_dataset import PackedDataset
from dapt_trainer.errors import InputError

_DRAWS = 2**40
"""More than any run reads; the mixture's arithmetic ends at 2^42."""


class GeneralRows:
    """Orders general sequences: row i is the i-th; after all were read they repeat in another order."""

    def __init__(self, work: Path, manifest: DataManifest, *, seed: int, document_boundaries: bool) -> None:
        """Open the shards.

        Args:
            work: root of the work volume.
            manifest: on it, compared with what prepare reported.
            seed: of the order.
            document_boundaries: documents of a sequence are kept apart.

        Raises:
            InputError: there is no general training text.
        """
        self.manifest = manifest
        self.available = sum(shard.sequences for shard in manifest.shards if shard.side == "general")
        if not self.available:
            raise InputError(
                "pretraining.regularization needs general training text, and spec.corpus.general left no sequence of "
                "it; add general text, or remove regularization"
            )
        shards = open_shards(work, manifest)
        # With batches of one sequence, step i of the mixture is the i-th general sequence.
        mixture = Mixture.of_shards(shards, seed=seed, replay_fraction=1.0, global_batch_size=1)
        self._rows = PackedDataset(
            shards,
            mixture,
            total_steps=_DRAWS,
            global_batch_size=1,
            document_boundaries=document_boundaries,
        )

    def row(self, number: int) -> dict[str, torch.Tensor]:
        """Return one sequence; each tensor [L]."""
        return self._rows[number]


def general_digest(manifest: DataManifest) -> str:
    """Return the hexadecimal SHA-256 over the general shards' files and the sources' weights.

    Equal digests mean equal rows.
    """
    lines = [f"{manifest.sequence_length_tokens}\n"]
    for shard in manifest.shards:
        if shard.side == "general":
            lines.append(f"{shard.name} {shard.weight!r} {shard.sequences}\n")
            lines += [f"{file.name} {file.sha256}\n" for file in shard.files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
