"""Finds near-duplicates of held-out documents by the share of common word 5-grams (shingles).

Broder 1997, "On the resemblance and containment of documents": the share of one document's shingles that occur in
another (containment) can be estimated from the shingles with the smallest hashes. A document's sketch is its shingles
whose hash is below 2^64 / 8, and at least its 64 smallest; a document of fewer shingles is compared whole.

A training document is a near-duplicate when `NEAR_FRACTION` of its shingles occur in one held-out document, or when it
contains that share of a held-out document. One of fewer than `MIN_SHINGLES` shingles is contained when one held-out
document has all of them. Exact duplicates need no shingles: they have the same hash.

The sketch of a long document has one shingle in eight, so it has few or none of a short held-out document that stands
in it. Where it has most of those few, the document is suspected, and its text decides. A held-out document without any
such shingle could not be found, so it is not held out where there is another (`can_be_found`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.text import Hashes, WordHasher, normalized, words

SHINGLE_WORDS = 5
NEAR_FRACTION = 0.7
MIN_SHINGLES = 8
"""A document of fewer shingles is a near-duplicate of none: short phrases recur without being copies."""
_SAMPLED_BELOW = np.uint64(1 << 61)
_MIN_SKETCH = 64


def sketches(ngrams: Hashes, word_counts: npt.NDArray[np.int64]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Return the sketches of a batch of documents, one after the other.

    Args:
        ngrams: hashes of the shingles of all words of the batch in a row.
        word_counts: [D] words of each document.

    Returns:
        (sorted hashes of all sketches, number of hashes of each document [D])
    """
    parts, counts = [], np.zeros(len(word_counts), dtype=np.int64)
    first = 0
    for number, count in enumerate(word_counts.tolist()):
        shingles = ngrams[first : first + count - SHINGLE_WORDS + 1] if count >= SHINGLE_WORDS else ngrams[:0]
        # By value and not by number: whether a shingle is sampled must not depend on the document that it occurs in.
        sketch = np.unique(shingles[shingles < _SAMPLED_BELOW])
        if len(sketch) < _MIN_SKETCH:
            sketch = np.unique(shingles)[:_MIN_SKETCH]
        parts.append(sketch)
        counts[number] = len(sketch)
        first += count
    return (np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)), counts


def can_be_found(sketch: Hashes) -> bool:
    """Return whether a held-out document with this sketch is recognized in every document that contains it."""
    return len(sketch) >= MIN_SHINGLES and bool((sketch < _SAMPLED_BELOW).any())


class HeldOutShingles:
    """Holds all shingles of the held-out documents, and which documents each occurs in."""

    def __init__(self, texts: Sequence[str]) -> None:
        hasher = WordHasher()
        shingles = []
        for text in texts:
            (ngrams,) = hasher.ngrams(hasher.hashes(words(normalized(text))), [SHINGLE_WORDS])
            shingles.append(np.unique(ngrams))
        owners = np.repeat(np.arange(len(shingles), dtype=np.int64), [len(hashes) for hashes in shingles])
        all_hashes = np.concatenate(shingles) if shingles else np.empty(0, dtype=np.uint64)
        order = np.argsort(all_hashes, kind="stable")
        self._hashes = all_hashes[order]
        self._owners = owners[order]
        self._documents = len(shingles)
        self._sampled_sizes = np.array(
            [np.searchsorted(hashes, _SAMPLED_BELOW) for hashes in shingles], dtype=np.int64
        )
        self._sizes = np.array([len(hashes) for hashes in shingles], dtype=np.int64)
        # Documents of which a sketch may have too few shingles to decide by them.
        self._is_short = (self._sizes >= MIN_SHINGLES) & (self._sampled_sizes < MIN_SHINGLES)
        self._hashes_of_short = np.unique(
            self._hashes[self._is_short[self._owners] & (self._hashes < _SAMPLED_BELOW)]
        )
        self._hasher = hasher

    def is_near(self, sketch: Hashes) -> bool:
        """Return whether the document with this sketch is a near-duplicate of a held-out one."""
        if len(sketch) == 0 or self._documents == 0:
            return False
        first = np.searchsorted(self._hashes, sketch, side="left")
        last = np.searchsorted(self._hashes, sketch, side="right")
        is_shared = last > first
        # 1. Is most of the document in one held-out document?
        needed = NEAR_FRACTION * len(sketch)
        may_be_part = len(sketch) >= MIN_SHINGLES and is_shared.sum() >= needed
        if may_be_part and self._count(first[is_shared], last[is_shared]).max() >= needed:
            return True
        # 2. Is most of a held-out document in it? Only sampled hashes are comparable: whether one is in a sketch does
        # not depend on the document.
        is_sampled = is_shared & (sketch < _SAMPLED_BELOW)
        if is_sampled.sum() < NEAR_FRACTION * MIN_SHINGLES:
            return False
        shares = self._count(first[is_sampled], last[is_sampled]) / np.maximum(self._sampled_sizes, 1)
        return bool((shares[self._sampled_sizes >= MIN_SHINGLES] >= NEAR_FRACTION).any())

    def contains(self, sketch: Hashes) -> bool:
        """Return whether the document with this sketch is short, and one held-out document has all its shingles."""
        if not 0 < len(sketch) < MIN_SHINGLES or self._documents == 0:
            return False
        first = np.searchsorted(self._hashes, sketch, side="left")
        last = np.searchsorted(self._hashes, sketch, side="right")
        return bool((last > first).all() and self._count(first, last).max() == len(sketch))

    def may_contain_one(self, sketch: Hashes) -> bool:
        """Return whether a short held-out document may stand in the document with this sketch: look at its text."""
        if not len(self._hashes_of_short) or not len(sketch):
            return False
        # Few documents share any of these few shingles: this decides for nearly all of them.
        places = np.searchsorted(self._hashes_of_short, sketch)
        places[places == len(self._hashes_of_short)] = 0
        shared = sketch[self._hashes_of_short[places] == sketch]
        if not len(shared):
            return False
        counts = self._count(
            np.searchsorted(self._hashes, shared, side="left"),
            np.searchsorted(self._hashes, shared, side="right"),
        )
        return bool((self._is_short & (counts > 0) & (counts >= NEAR_FRACTION * self._sampled_sizes)).any())

    def contains_one(self, text: str) -> bool:
        """Return whether most of a held-out document stands in this text."""
        (ngrams,) = self._hasher.ngrams(self._hasher.hashes(words(normalized(text))), [SHINGLE_WORDS])
        shingles = np.unique(ngrams)
        first = np.searchsorted(self._hashes, shingles, side="left")
        last = np.searchsorted(self._hashes, shingles, side="right")
        counts = self._count(first, last)
        return bool(((self._sizes >= MIN_SHINGLES) & (counts >= NEAR_FRACTION * self._sizes)).any())

    def _count(self, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many of the shingles at first .. last - 1 each held-out document has."""
        sizes = last - first
        places = np.repeat(first - np.concatenate(([0], np.cumsum(sizes)[:-1])), sizes) + np.arange(
            sizes.sum()
        )
        return np.bincount(self._owners[places], minlength=self._documents)
