"""Packs a spooled source into its shard, without held-out documents, their near-duplicates and parts of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dapt_trainer.data.packing.best_fit import Packer
from dapt_trainer.data.packing.data_manifest import ShardManifest, TokenType
from dapt_trainer.data.packing.shards import ShardWriter
from dapt_trainer.data.slices.held_out_checks import CONTAINED, NEAR, HeldOutChecks
from dapt_trainer.data.slices.spooled_source import SpooledSource
from dapt_trainer.data.text import Hashes

_BEAT_DOCUMENTS = 4096


@dataclass(frozen=True)
class PackedSource:
    """Holds a shard's manifest, and how many documents were dropped because of held-out ones."""

    manifest: ShardManifest
    near_duplicates: int
    """Documents that are nearly equal to a held-out one, or contain one."""
    contained: int
    """Short documents that stand in a held-out one."""


@dataclass(frozen=True)
class PackingRules:
    """Holds what the packing of all sources shares."""

    held_out_keys: Hashes
    """Sorted hashes of all held-out texts of both sides."""
    sequence_length_tokens: int
    """Positions of a row."""
    token_type: TokenType
    """Type of tokens.bin."""
    end_of_text_id: int
    """Fills positions without a token."""


def pack_source(
    spooled: SpooledSource,
    folder: Path,
    rules: PackingRules,
    checks: HeldOutChecks,
    *,
    held_out: Collection[int],
    progress: Callable[[float], None],
) -> PackedSource:
    """Write the shard of one source.

    Args:
        spooled: the source's kept documents.
        folder: of the shard.
        rules: for all sources.
        checks: find the documents that are too near to held-out text.
        held_out: numbers of its documents that are held out.
        progress: called with the share of the documents that were checked.
    """
    # 1. Leave out what is held out, and what stands nearly so in held-out text.
    is_left_out = np.zeros(len(spooled.keys), dtype=np.bool_)
    is_left_out[list(held_out)] = True
    if spooled.is_repeat is not None:
        is_left_out |= spooled.is_repeat
    # A copy by its hash is possible across sides, and within one where exact duplicates are kept.
    is_copy = np.isin(spooled.keys, rules.held_out_keys) & ~is_left_out
    findings = checks.findings(spooled, ~(is_left_out | is_copy), progress)
    is_trained = ~is_left_out & ~is_copy & (findings == 0)

    # 2. Pack the rest.
    numbers = np.flatnonzero(is_trained)

    def training_documents() -> Iterator[tuple[int, int]]:
        for first in range(0, len(numbers), _BEAT_DOCUMENTS):
            progress(1.0)
            some = numbers[first : first + _BEAT_DOCUMENTS]
            yield from zip(some.tolist(), spooled.token_counts[some].tolist(), strict=True)

    packer = Packer(rules.sequence_length_tokens)
    with ShardWriter(
        folder,
        sequence_length_tokens=rules.sequence_length_tokens,
        token_type=rules.token_type,
        end_of_text_id=rules.end_of_text_id,
    ) as writer:
        for row in packer.pack(training_documents()):
            writer.write_row([spooled.tokens.of(piece.document, piece.start, piece.length) for piece in row])
        files = writer.close()
    manifest = ShardManifest(
        name=spooled.name,
        side=spooled.side,
        index=spooled.index,
        source=spooled.config.source,
        weight=spooled.config.weight,
        sequences=writer.sequences,
        tokens=int(spooled.token_counts[numbers].sum()),
        positions=writer.sequences * rules.sequence_length_tokens,
        filled_positions=writer.filled_positions,
        repeated_tokens=packer.repeated_tokens,
        pieces=packer.pieces,
        documents=len(numbers),
        cut_documents=packer.cut_documents,
        files=files,
    )
    return PackedSource(
        manifest,
        near_duplicates=int((is_copy | (findings == NEAR)).sum()),
        contained=int((findings == CONTAINED).sum()),
    )
