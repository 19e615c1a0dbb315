"""Finds near-duplicates within a corpus by MinHash (`deduplicate: near`); the first document of each group stays.

Broder 1997: the share of equal minima of two documents' shingles (word 5-grams) under random hashes estimates their
Jaccard similarity s. 120 hashes in 20 bands of 6: two documents are compared when a band agrees, with probability
1 - (1 - s^6)^20, which is 0.61 at s = 0.6, 0.92 at 0.7 and 0.998 at 0.8; they are near-duplicates when at least
`NEAR_SIMILARITY` of all 120 agree (standard error 0.04 there). Documents that such pairs connect are one group, and the
first in reading order stays.

Signatures are computed together with the tokens, where the words are hashed already, so that no source is read twice.
datatrove finds the documents whose bands agree, band by band, from files on disk; docs/decisions/0009 says why it does
not do the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.data.dedup.held_out_neighbours import MIN_SHINGLES, SHINGLE_WORDS
from dapt_trainer.data.text import Hashes
from dapt_trainer.errors import InfrastructureError
from dapt_trainer.linux import die_with_parent

BANDS = 20
ROWS = 6
HASHES = BANDS * ROWS
NEAR_SIMILARITY = 0.7
Signatures = npt.NDArray[np.uint32]
"""[documents, HASHES]; a document of fewer than MIN_SHINGLES shingles has zeros and is a near-duplicate of none."""
Pairs = npt.NDArray[np.int64]
"""[pairs, 2] numbers of documents, the smaller first."""

_SEED = 20_240_601
BAND_MEMORY_BYTES = 4 << 30
_SORTING_BYTES = 128
"""Memory of a document while a band is sorted: its record, the order, the sorted record and the written one."""
_INLINE_DOCUMENTS = 20_000
_PAIRS_AT_ONCE = 100_000
_BEAT_SECONDS = 2.0


def signatures(ngrams: Hashes, word_counts: npt.NDArray[np.int64]) -> Signatures:
    """Return the MinHash signatures of a batch of documents.

    The hashes are h(x) = (a x + b) mod 2^64 >> 32 with odd a (Dietzfelbinger et al. 1997), of shingles whose bits are
    mixed already.

    Args:
        ngrams: hashes of the shingles of all words of the batch in a row.
        word_counts: [D] words of each document.
    """
    result = np.zeros((len(word_counts), HASHES), dtype=np.uint32)
    sizes = np.maximum(word_counts - SHINGLE_WORDS + 1, 0)
    long_enough = np.flatnonzero(sizes >= MIN_SHINGLES)
    if not len(long_enough):
        return result
    firsts = (np.cumsum(word_counts) - word_counts)[long_enough]
    sizes = sizes[long_enough]
    starts = np.cumsum(sizes) - sizes
    shingles = ngrams[np.repeat(firsts - starts, sizes) + np.arange(sizes.sum())]
    random = np.random.Generator(np.random.PCG64(_SEED))
    factors = random.integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = random.integers(0, 1 << 63, HASHES, dtype=np.uint64)
    for number in range(HASHES):
        # The high half: in a product modulo 2^64 a low bit depends on the bits below it alone.
        values = ((shingles * factors[number] + shifts[number]) >> np.uint64(32)).astype(np.uint32)
        result[long_enough, number] = np.minimum.reduceat(values, starts)
    return result


def find_repeats(
    parts: Iterable[Signatures],
    folder: Path,
    *,
    processes: int | None = None,
    memory_bytes: int = BAND_MEMORY_BYTES,
    inline_documents: int = _INLINE_DOCUMENTS,
    beat: Callable[[], None] = lambda: None,
) -> list[npt.NDArray[np.bool_]]:
    """Return for each part of a corpus which of its documents are near-duplicates of an earlier one.

    Args:
        parts: signatures in reading order; may be mapped from disk.
        folder: for files of 480 bytes a document, and 56 for each band that is compared; the caller removes it.
        processes: how many share the bands; None: one a core.
        memory_bytes: that all processes together may take to sort documents; beyond it a band is sorted part by part.
        inline_documents: up to this number of documents are compared in this process.
        beat: called while other processes work.

    Raises:
        InfrastructureError: one of the processes was killed.
    """
    sizes: list[int] = []
    path = folder / "signatures.bin"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for part in parts:
            sizes.append(len(part))
            for first in range(0, len(part), _PAIRS_AT_ONCE):
                file.write(np.ascontiguousarray(part[first : first + _PAIRS_AT_ONCE], dtype="<u4").tobytes())
    total = sum(sizes)
    processes = processes or len(os.sched_getaffinity(0))
    parts_of_band = max(1, -(-total * _SORTING_BYTES * min(processes, BANDS) // memory_bytes))
    bands = [Band(path, total, number, parts_of_band) for number in range(BANDS)]
    groups = _Groups(total)
    if total <= inline_documents or processes == 1:
        for band in bands:
            beat()
            groups.join(near_pairs(band))
    elif total:
        with ProcessPoolExecutor(
            processes,
            # Not a fork, as in `AnalysisPool`.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=die_with_parent,
            initargs=(os.getpid(),),
        ) as pool:
            for future in [pool.submit(near_pairs, band) for band in bands]:
                groups.join(_wait_for(future, beat))
    is_repeat = groups.is_repeat()
    edges = np.cumsum([0, *sizes])
    return [is_repeat[first:last] for first, last in itertools.pairwise(edges.tolist())]


def _wait_for(future: Future[Pairs], beat: Callable[[], None]) -> Pairs:
    while True:
        try:
            return future.result(timeout=_BEAT_SECONDS)
        except TimeoutError:
            beat()
        except BrokenProcessPool as error:
            beat()  # raises when a stop is requested, which may have ended the process
            raise InfrastructureError(
                "a process that looks for near-duplicates was killed, most likely for memory; give prepare more memory "
                "or fewer cores"
            ) from error


@dataclass(frozen=True)
class Band:
    path: Path
    documents: int
    number: int
    parts: int = 1
    """Documents are sorted in so many parts, one after the other: those that agree in the band are in one of them."""


def near_pairs(band: Band) -> Pairs:
    """Return the pairs of documents that agree in this band and in enough of all hashes."""
    all_hashes: Signatures = (
        np.memmap(band.path, dtype="<u4", mode="r", shape=(band.documents, HASHES))
        if band.documents
        else np.empty((0, HASHES), np.uint32)
    )
    pairs = _pairs_of_band(all_hashes, band)
    near = [
        part[(all_hashes[part[:, 0]] == all_hashes[part[:, 1]]).mean(axis=1) >= NEAR_SIMILARITY]
        for part in (pairs[first : first + _PAIRS_AT_ONCE] for first in range(0, len(pairs), _PAIRS_AT_ONCE))
    ]
    return np.concatenate(near) if near else pairs


def _pairs_of_band(all_hashes: Signatures, band: Band) -> Pairs:
    """Return pairs of documents whose hashes of this band are equal.

    Of a run of such documents each is paired with the one before it and with the first, not with all others, so that
    the number of pairs stays linear.
    """
    folder = band.path.parent / f"band-{band.number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part-{part:03d}.records" for part in range(band.parts)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for first in range(0, band.documents, _PAIRS_AT_ONCE):
            columns = all_hashes[
                first : first + _PAIRS_AT_ONCE, band.number * ROWS : (band.number + 1) * ROWS
            ]
            # Documents that are too short have zeros, and would all agree with each other.
            numbers = np.flatnonzero(columns.any(axis=1))
            records = np.empty((len(numbers), ROWS + 1), dtype="<u4")
            records[:, :ROWS] = columns[numbers]
            records[:, ROWS] = numbers + first
            part_of = records[:, 0] % band.parts
            for part, file in enumerate(files):
                file.write(records[part_of == part].tobytes())
    pairs = [_pairs_of_part(path, folder / f"part-{part:03d}") for part, path in enumerate(paths)]
    return np.unique(np.concatenate(pairs), axis=0)


def _pairs_of_part(path: Path, folder: Path) -> Pairs:
    """Return pairs of documents whose records in a file have equal hashes."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.disable("datatrove")
    records = np.fromfile(path, dtype="<u4").reshape(-1, ROWS + 1)
    bucket = folder / "bucket_000"
    bucket.mkdir(parents=True, exist_ok=True)
    # The file that datatrove's signature step would have written: (hashes of the band, document), sorted.
    records[np.lexsort(records.T[::-1])].tofile(bucket / "00000.minhash.sig")
    path.unlink()
    config = MinhashConfig(
        num_buckets=1, hashes_per_bucket=ROWS, hash_config=HashConfig(precision=32), n_grams=SHINGLE_WORDS
    )
    pairs_folder = folder / "pairs"
    MinhashDedupBuckets(str(folder), str(pairs_folder), config=config, lines_to_buffer=10_000).run(None, 0, 1)
    content = b"".join(found.read_bytes() for found in sorted(pairs_folder.glob("*.dups")))
    remove_folder(folder)
    neighbours = np.frombuffer(content, dtype="<u4").reshape(-1, 4)[:, [1, 3]].astype(np.int64)
    if not len(neighbours):
        return neighbours
    starts_run = np.concatenate(([True], neighbours[1:, 0] != neighbours[:-1, 1]))
    first = neighbours[starts_run, 0][np.cumsum(starts_run) - 1]
    with_first = np.column_stack((first, neighbours[:, 1]))
    return np.sort(np.concatenate((neighbours, with_first)), axis=1)


class _Groups:
    """Groups documents that pairs connect (union-find); a group is named by its first document."""

    def __init__(self, documents: int) -> None:
        self._parents = np.arange(documents, dtype=np.int64)

    def join(self, pairs: Pairs) -> None:
        for left, right in pairs.tolist():
            # The smaller number stays the root: the first document of a group names it, and is kept.
            first, second = sorted((self._root(left), self._root(right)))
            self._parents[second] = first

    def is_repeat(self) -> npt.NDArray[np.bool_]:
        """Return for each document whether it is not the first of its group."""
        result: npt.NDArray[np.bool_] = self._parents != np.arange(len(self._parents))
        return result

    def _root(self, document: int) -> int:
        while (parent := int(self._parents[document])) != document:
            self._parents[document] = self._parents[parent]
            document = parent
        return document
