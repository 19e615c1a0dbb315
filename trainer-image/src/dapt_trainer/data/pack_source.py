"""From a spooled source to its shard: what is held out or too near to it leaves, the rest is packed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.packing.best_fit import Packer
from dapt_trainer.data.packing.data_manifest import ShardManifest, TokenType
from dapt_trainer.data.packing.shards import ShardWriter
from dapt_trainer.data.spool import SpooledSource

_BEAT_DOCUMENTS = 4096


@dataclass(frozen=True)
class PackedSource:
    """A shard, and how many documents left the training data for being near to held-out ones."""

    manifest: ShardManifest
    near_duplicates: int


def pack_source(
    spooled: SpooledSource,
    folder: Path,
    *,
    held_out: Collection[int],
    held_out_keys: npt.NDArray[np.uint64],
    shingles: HeldOutShingles,
    sequence_length_tokens: int,
    token_type: TokenType,
    end_of_text_id: int,
    progress: Callable[[float], None],
) -> PackedSource:
    """Write the shard of one source.

    Args:
        spooled: its kept documents.
        folder: of the shard.
        held_out: numbers of its documents that are held out.
        held_out_keys: sorted hashes of all held-out texts of both sides.
        shingles: of all held-out texts of both sides.
        sequence_length_tokens: positions of a row.
        token_type: of tokens.bin.
        end_of_text_id: fills positions without a token.
        progress: called with the share of the documents that were looked at.
    """
    chosen = frozenset(held_out)
    exact = np.isin(spooled.keys, held_out_keys)
    sketch_ends = np.cumsum(spooled.sketch_counts)
    first_tokens = np.concatenate(([0], np.cumsum(spooled.token_counts)))
    later = spooled.later
    near = documents = tokens = 0

    def wanted() -> Iterator[tuple[int, int]]:
        nonlocal near, documents, tokens
        for number, (count, sketch_count) in enumerate(
            zip(spooled.token_counts.tolist(), spooled.sketch_counts.tolist(), strict=True)
        ):
            if number % _BEAT_DOCUMENTS == 0:
                progress(number / len(spooled.token_counts))
            if number in chosen or (later is not None and later[number]):
                continue
            end = int(sketch_ends[number])
            if exact[number] or shingles.is_near(np.asarray(spooled.sketches[end - sketch_count : end])):
                near += 1
                continue
            documents += 1
            tokens += count
            yield number, count

    packer = Packer(sequence_length_tokens)
    with ShardWriter(
        folder,
        sequence_length_tokens=sequence_length_tokens,
        token_type=token_type,
        end_of_text_id=end_of_text_id,
    ) as writer:
        for row in packer.pack(wanted()):
            starts = [int(first_tokens[piece.document]) + piece.start for piece in row]
            writer.write_row(
                [
                    spooled.tokens[start : start + piece.length]
                    for start, piece in zip(starts, row, strict=True)
                ]
            )
        files = writer.close()
    manifest = ShardManifest(
        name=spooled.name,
        side=spooled.side,
        index=spooled.index,
        source=spooled.config.source,
        weight=spooled.config.weight,
        sequences=writer.sequences,
        tokens=tokens,
        positions=writer.sequences * sequence_length_tokens,
        filled_positions=writer.filled_positions,
        repeated_tokens=packer.repeated_tokens,
        pieces=packer.pieces,
        documents=documents,
        cut_documents=packer.cut_documents,
        files=files,
    )
    return PackedSource(manifest, near)
