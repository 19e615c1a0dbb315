"""Reads spooled documents again: as the sample that a tokenizer learns from, and to tokenize them with the result."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.packing.data_manifest import TokenType
from dapt_trainer.data.packing.shards import token_dtype
from dapt_trainer.data.slices.spooled_source import KEY_SPACE, SpooledSource, StoredRuns, StoredTexts
from dapt_trainer.data.text import Hashes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLE_BYTES = 64 * 1024 * 1024
"""Text that a tokenizer learns from: more hardly improves the words, and counting this much takes a minute or two."""
_BATCH_DOCUMENTS = 512


def texts_of(spool: SpooledSource) -> StoredTexts:
    """Return the texts of a source.

    Raises:
        ValueError: the source was spooled without them.
    """
    if spool.texts is None:
        raise ValueError(f"{spool.name} was spooled without its texts")
    return spool.texts


def training_sample(
    spool: SpooledSource, *, share: float, held_out_keys: Hashes, shingles: HeldOutShingles
) -> Iterator[str]:
    """Yield about a share of the documents that will be trained on, without held-out ones and their near-duplicates.

    Args:
        spool: kept documents of one source.
        share: of them, 0 to 1.
        held_out_keys: sorted hashes of all held-out texts of both sides.
        shingles: of all held-out texts of both sides.
    """
    # Held-out documents are those with the smallest keys, so the sample takes those with the largest.
    is_sampled = spool.keys >= np.uint64(min(KEY_SPACE - 1, int((1.0 - share) * KEY_SPACE)))
    is_sampled &= ~np.isin(spool.keys, held_out_keys)
    for number, text in enumerate(texts_of(spool)):
        if not is_sampled[number]:
            continue
        sketch = spool.sketch(number)
        if not shingles.is_near(sketch) and not shingles.contains(sketch):
            yield text


def retokenized(
    spool: SpooledSource,
    path: Path,
    tokenizer: Tokenizer,
    *,
    begin_of_text_id: int | None,
    end_of_text_id: int,
    token_type: TokenType,
    beat: Callable[[], None] = lambda: None,
) -> SpooledSource:
    """Return the same documents in the tokens of an extended tokenizer.

    Args:
        spool: with its texts.
        path: of the file that gets the new tokens.
        tokenizer: the extended one.
        begin_of_text_id: token before each document; None: there is none.
        end_of_text_id: token after each document.
        token_type: of the new tokens.
        beat: called after each batch.
    """
    dtype = token_dtype(token_type)
    head = [] if begin_of_text_id is None else [begin_of_text_id]
    counts = array("q")
    batch: list[str] = []
    with path.open("wb") as file:

        def write() -> None:
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                ids = np.array([*head, *encoding.ids, end_of_text_id], dtype=dtype)
                counts.append(len(ids))
                file.write(ids.tobytes())
            batch.clear()
            beat()

        for text in texts_of(spool):
            batch.append(text)
            if len(batch) >= _BATCH_DOCUMENTS:
                write()
        if batch:
            write()
    token_counts = np.array(counts, dtype=np.int64)
    firsts = np.cumsum(token_counts) - token_counts
    return dataclasses.replace(
        spool,
        token_counts=token_counts,
        tokens=StoredRuns((path,), dtype, (len(token_counts),), firsts, token_counts),
        texts=None,
    )
