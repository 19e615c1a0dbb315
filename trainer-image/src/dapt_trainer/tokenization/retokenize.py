"""Spooled documents, read again: the sample that a tokenizer learns from, and their tokens once it has grown."""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.packing.data_manifest import TokenType
from dapt_trainer.data.spool import SpooledSource

SAMPLE_BYTES = 64 * 1024 * 1024
"""Of text that is learned from; more makes hardly better words, and counting so much takes a minute or two."""
_BATCH_DOCUMENTS = 512
_KEY_SPACE = 1 << 64


def spooled_texts(spool: SpooledSource) -> Iterator[str]:
    """The documents in their order."""
    assert spool.texts is not None
    with spool.texts.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def training_sample(
    spool: SpooledSource,
    *,
    share: float,
    held_out_keys: npt.NDArray[np.uint64],
    shingles: HeldOutShingles,
) -> Iterator[str]:
    """About a share of the documents that will be trained on, chosen by hash; no held-out one, none near to one.

    Args:
        spool: kept documents of one source, each once.
        share: of them, 0 to 1; those of the largest hashes (held-out ones have the smallest).
        held_out_keys: sorted hashes of all held-out texts of both sides.
        shingles: of all held-out texts of both sides.
    """
    wanted = spool.keys >= np.uint64(min(_KEY_SPACE - 1, int((1.0 - share) * _KEY_SPACE)))
    wanted &= ~np.isin(spool.keys, held_out_keys)
    ends = np.cumsum(spool.sketch_counts)
    for number, text in enumerate(spooled_texts(spool)):
        if not wanted[number]:
            continue
        end = int(ends[number])
        if not shingles.is_near(np.asarray(spool.sketches[end - int(spool.sketch_counts[number]) : end])):
            yield text


def retokenized(
    spool: SpooledSource,
    tokenizer: Any,
    *,
    begin_of_text_id: int | None,
    end_of_text_id: int,
    token_type: TokenType,
    beat: Callable[[], None] = lambda: None,
) -> SpooledSource:
    """The same documents with the tokens of a grown tokenizer; their old tokens and texts leave the disk.

    Args:
        spool: with its texts.
        tokenizer: of the `tokenizers` library.
        begin_of_text_id: stands before each document; None: nothing does.
        end_of_text_id: stands behind each document.
        token_type: of the new tokens.
        beat: called after each batch.
    """
    assert spool.texts is not None
    path = spool.texts.with_suffix(".grown-tokens")
    dtype = np.dtype(token_type).newbyteorder("<")
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

        for text in spooled_texts(spool):
            batch.append(text)
            if len(batch) >= _BATCH_DOCUMENTS:
                write()
        if batch:
            write()
    spool.texts.unlink()
    spool.texts.with_suffix(".tokens").unlink(missing_ok=True)
    return dataclasses.replace(
        spool,
        token_counts=np.array(counts, dtype=np.int64),
        tokens=np.memmap(path, dtype=dtype, mode="r") if counts else np.empty(0, dtype=dtype),
        texts=None,
    )
