"""Holds the kept documents of the sources: counts and keys in memory, tokens and sketches on the work volume.

A document is, in this order: empty (no word or token), a duplicate (an earlier document of its side has the same
normalized text), contaminated (it contains an evaluation item), or kept. Which of the kept ones are held out can only
be decided when all are known, so their tokens and sketches are spooled on the work volume until then.
"""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TextSource, source_label
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.data.dedup.minhash import BAND_MEMORY_BYTES, HASHES, Signatures, find_repeats
from dapt_trainer.data.packing.shards import Integer, Integers, mapped_array
from dapt_trainer.data.reading.text_batches import Counts
from dapt_trainer.data.text import Hashes

KEY_SPACE = 1 << 64
"""Number of possible keys: a document belongs to a share s of all when its key is below s times this."""
SMALLEST_KEPT = 64
"""Documents of each half that are candidates because their hashes are the smallest, so that no half is ever empty: many
of them may turn out to stand on the other side too, or to be too short."""
MIN_HELD_OUT_TOKENS = 2
"""Of a document of one token nothing may be scored (`packing.leads`)."""
TINY_TOKENS = 16
"""Documents of fewer tokens are counted: there is little in them to predict from."""
_MAX_MAPPED_FILES = 64
"""Each holds a descriptor; documents are read nearly in their order."""


@dataclass(frozen=True)
class HeldOutCandidate:
    """Describes a kept document that may be held out."""

    key: int
    half: int
    source: int
    """Index of the source in the side's list."""
    document: int
    """Number among the source's kept documents."""
    tokens: int
    """Number of tokens without special ones."""
    text_offset: int
    """Offset in the file of candidate texts of its slice."""
    text_file: int = 0
    """Number of that file among those of the side."""


@dataclass(frozen=True)
class StoredRuns:
    """Holds values of documents that lie in files, one run of values for each document."""

    paths: tuple[Path, ...]
    dtype: np.dtype[Integer]
    documents: tuple[int, ...]
    """[files] documents of each."""
    firsts: npt.NDArray[np.int64]
    """[documents] where each begins in its file."""
    counts: npt.NDArray[np.int64]
    """[documents] values of each."""
    _maps: OrderedDict[int, Integers] = field(default_factory=OrderedDict, compare=False)

    def of(self, document: int, start: int = 0, length: int | None = None) -> Integers:
        """Return the values of a document, or a run of them; a view of the mapped file."""
        count = int(self.counts[document]) - start if length is None else length
        first = int(self.firsts[document]) + start
        return self._mapped(bisect_right(self._ends, document))[first : first + count]

    def window(self, first: int, last: int) -> StoredRuns:
        """Return the runs of the documents from `first` to `last - 1`, with the files that hold them."""
        held = [
            (path, min(end, last) - max(end - count, first))
            for path, count, end in zip(self.paths, self.documents, self._ends, strict=True)
            if end > first and end - count < last and count
        ]
        return StoredRuns(
            tuple(path for path, _ in held),
            self.dtype,
            tuple(count for _, count in held),
            self.firsts[first:last],
            self.counts[first:last],
        )

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.documents))

    def _mapped(self, number: int) -> Integers:
        values = self._maps.get(number)
        if values is None:
            values = self._maps[number] = mapped_array(self.paths[number], self.dtype)
            if len(self._maps) > _MAX_MAPPED_FILES:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(number)
        return values


@dataclass(frozen=True)
class StoredTexts:
    """Holds the texts of documents in files, one JSON string a line, and which of them are kept."""

    paths: tuple[Path, ...]
    is_kept: tuple[npt.NDArray[np.bool_], ...]
    """[files][lines of the file]"""

    @property
    def size_bytes(self) -> int:
        """Return the size of the files."""
        return sum(path.stat().st_size for path in self.paths)

    def __iter__(self) -> Iterator[str]:
        """Yield the texts of the kept documents."""
        for path, is_kept in zip(self.paths, self.is_kept, strict=True):
            with path.open("rb") as lines:
                yield from map(json.loads, compress(lines, is_kept.tolist()))


@dataclass(frozen=True)
class StoredSignatures:
    """Holds the signatures of documents in files, and which of them are kept."""

    paths: tuple[Path, ...]
    is_kept: tuple[npt.NDArray[np.bool_], ...]
    """[files][documents of the file]"""

    def __iter__(self) -> Iterator[Signatures]:
        """Yield the signatures of each file's kept documents."""
        for path, is_kept in zip(self.paths, self.is_kept, strict=True):
            signatures = mapped_array(path, np.dtype("<u4")).reshape(-1, HASHES)
            yield signatures if is_kept.all() else signatures[is_kept]


@dataclass(frozen=True)
class SpooledSource:
    """Holds the kept documents of one source."""

    side: Side
    index: int
    config: TextSource
    counts: Counts
    token_counts: npt.NDArray[np.int64]
    """[documents] tokens of each, special ones included."""
    keys: Hashes
    """[documents] seeded hash of the normalized text."""
    tokens: StoredRuns
    sketches: StoredRuns
    signatures: StoredSignatures | None = None
    """None unless near-duplicates are searched for."""
    texts: StoredTexts | None = None
    """None unless the documents are tokenized again."""
    is_repeat: npt.NDArray[np.bool_] | None = None
    """[documents] whether each is a near-duplicate of an earlier document of the side; None: not searched for."""

    def sketch(self, document: int) -> Hashes:
        """Return the sketch of one of its documents."""
        return np.asarray(self.sketches.of(document), dtype=np.uint64)

    @property
    def name(self) -> str:
        """Return the source's name, for example `domain-0`, which is also the folder of its shard."""
        return f"{self.side}-{self.index}"

    @property
    def label(self) -> str:
        """Return the source as people know it from the manifest, for example `domain[0]`."""
        return source_label(self.side, self.index)

    @property
    def repeats(self) -> int:
        """Return how many of its documents are near-duplicates of earlier ones."""
        return 0 if self.is_repeat is None else int(self.is_repeat.sum())


def mark_repeats(
    spools: Sequence[SpooledSource],
    folder: Path,
    beat: Callable[[], None],
    memory_bytes: int = BAND_MEMORY_BYTES,
) -> list[SpooledSource]:
    """Return a side's sources with a mark on each document that is a near-duplicate of an earlier one.

    Args:
        spools: of the side, in their order.
        folder: for files in between; removed at the end.
        beat: called now and then.
        memory_bytes: that the search may take.

    Raises:
        InfrastructureError: one of the processes was killed.
    """
    stored = (signatures for spool in spools for signatures in spool.signatures or ())
    marks = iter(find_repeats(stored, folder, memory_bytes=memory_bytes, beat=beat))
    remove_folder(folder)
    return [
        dataclasses.replace(spool, is_repeat=_joined([next(marks) for _ in spool.tokens.paths]))
        for spool in spools
    ]


def _joined(marks: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    return np.concatenate(marks) if marks else np.empty(0, dtype=np.bool_)
