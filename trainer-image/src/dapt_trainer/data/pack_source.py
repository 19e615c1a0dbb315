"""Packs a spooled source into its shard, without held-out documents, their near-duplicates and parts of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.packing.best_fit import Packer
from dapt_trainer.data.packing.data_manifest import ShardManifest, TokenType
from dapt_trainer.data.packing.shards import ShardWriter
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
    held_out_shingles: HeldOutShingles
    """Shingles of all held-out texts of both sides."""
    sequence_length_tokens: int
    """Positions of a row."""
    token_type: TokenType
    """Type of tokens.bin."""
    end_of_text_id: int
    """Fills positions without a token."""
    decode: Callable[[Sequence[int]], str]
    """Returns the text of tokens, without special ones; asked for the few documents that are suspected."""


def pack_source(
    spooled: SpooledSource,
    folder: Path,
    rules: PackingRules,
    *,
    held_out: Collection[int],
    progress: Callable[[float], None],
) -> PackedSource:
    """Write the shard of one source.

    Args:
        spooled: the source's kept documents.
        folder: of the shard.
        rules: for all sources.
        held_out: numbers of its documents that are held out.
        progress: called with the share of the documents that were checked.
    """
    held_out_numbers = frozenset(held_out)
    is_copy = np.isin(spooled.keys, rules.held_out_keys)
    is_repeat = spooled.is_repeat
    near = contained = documents = tokens = 0

    def training_documents() -> Iterator[tuple[int, int]]:
        nonlocal near, contained, documents, tokens
        for number, count in enumerate(spooled.token_counts.tolist()):
            if number % _BEAT_DOCUMENTS == 0:
                progress(number / len(spooled.token_counts))
            if number in held_out_numbers or (is_repeat is not None and is_repeat[number]):
                continue
            sketch = spooled.sketch(number)
            # A copy by its hash is possible across sides, and within one where exact duplicates are kept.
            if is_copy[number] or rules.held_out_shingles.is_near(sketch):
                near += 1
                continue
            if rules.held_out_shingles.contains(sketch):
                contained += 1
                continue
            if rules.held_out_shingles.may_contain_one(sketch) and rules.held_out_shingles.contains_one(
                rules.decode(spooled.tokens.of(number).tolist())
            ):
                near += 1
                continue
            documents += 1
            tokens += count
            yield number, count

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
        tokens=tokens,
        positions=writer.sequences * rules.sequence_length_tokens,
        filled_positions=writer.filled_positions,
        repeated_tokens=packer.repeated_tokens,
        pieces=packer.pieces,
        documents=documents,
        cut_documents=packer.cut_documents,
        files=files,
    )
    return PackedSource(manifest, near, contained)
