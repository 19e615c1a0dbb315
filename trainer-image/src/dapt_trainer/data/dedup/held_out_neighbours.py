"""Near-duplicates of held-out documents: found by the share of common word 5-grams (shingles).

Broder 1997, "On the resemblance and containment of documents": the share of one document's shingles that occur in
another (containment) can be estimated from the shingles with the smallest hashes. A document's sketch is its shingles
whose hash is below 2^64 / 8, and at least its 64 smallest; a document of fewer shingles is compared whole.

A training document is a near-duplicate when `NEAR_FRACTION` of its shingles occur in one held-out document, or when it
contains that share of a held-out document. Exact duplicates need no shingles: their hash put them aside together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.text import Hashes, WordHasher, normalized, words

SHINGLE_WORDS = 5
NEAR_FRACTION = 0.7
MIN_SHINGLES = 8
"""A document of fewer shingles is compared by its digest alone: short phrases recur without being copies."""
_SAMPLED_BELOW = np.uint64(1 << 61)
_SMALLEST = 64


def sketches(ngrams: Hashes, word_counts: npt.NDArray[np.int64]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """The sketches of a batch of documents, one after the other.

    Args:
        ngrams: hashes of the shingles of all words of the batch in a row.
        word_counts: [D] words of each document.

    Returns:
        Sorted hashes of all sketches, and how many belong to each document [D].
    """
    parts, counts = [], np.zeros(len(word_counts), dtype=np.int64)
    first = 0
    for number, count in enumerate(word_counts.tolist()):
        own = ngrams[first : first + count - SHINGLE_WORDS + 1] if count >= SHINGLE_WORDS else ngrams[:0]
        kept = np.unique(own[own < _SAMPLED_BELOW])
        if len(kept) < _SMALLEST:
            kept = np.unique(own)[:_SMALLEST]
        parts.append(kept)
        counts[number] = len(kept)
        first += count
    return (np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)), counts


class HeldOutShingles:
    """All shingles of the held-out documents, with their owners."""

    def __init__(self, texts: Sequence[str]) -> None:
        hasher = WordHasher()
        own = []
        for text in texts:
            (ngrams,) = hasher.ngrams(hasher.hashes(words(normalized(text))), [SHINGLE_WORDS])
            own.append(np.unique(ngrams))
        owners = np.repeat(np.arange(len(own), dtype=np.int64), [len(item) for item in own])
        hashes = np.concatenate(own) if own else np.empty(0, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._owners = owners[order]
        self._documents = len(own)
        self._sampled_sizes = np.array(
            [np.searchsorted(item, _SAMPLED_BELOW) for item in own], dtype=np.int64
        )

    def is_near(self, sketch: Hashes) -> bool:
        """Whether the document with this sketch is a near-duplicate of a held-out one, contains or is part of it."""
        if len(sketch) == 0 or self._documents == 0:
            return False
        first = np.searchsorted(self._hashes, sketch, side="left")
        last = np.searchsorted(self._hashes, sketch, side="right")
        found = last > first
        enough = len(sketch) >= MIN_SHINGLES and found.sum() >= NEAR_FRACTION * len(sketch)
        if enough and self._owned(first[found], last[found]).max() >= NEAR_FRACTION * len(sketch):
            return True
        sampled = found & (sketch < _SAMPLED_BELOW)
        if sampled.sum() < NEAR_FRACTION * MIN_SHINGLES:
            return False
        shares = self._owned(first[sampled], last[sampled]) / np.maximum(self._sampled_sizes, 1)
        return bool((shares[self._sampled_sizes >= MIN_SHINGLES] >= NEAR_FRACTION).any())

    def _owned(self, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many of the found shingles each held-out document has."""
        sizes = last - first
        places = np.repeat(first - np.concatenate(([0], np.cumsum(sizes)[:-1])), sizes) + np.arange(
            sizes.sum()
        )
        return np.bincount(self._owners[places], minlength=self._documents)
