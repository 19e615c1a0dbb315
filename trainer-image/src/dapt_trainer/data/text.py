"""Normalizes text, splits it into words, and hashes its word n-grams.

Two texts are duplicates when their normalized forms are equal: Unicode compatibility form (NFKC), lower case, any run
of white space as one space. Words are runs of letters and digits; each Chinese, Japanese or Korean character is a word.

The hash of the n words from word i on is a polynomial modulo 2^64 in an odd base B, computed from running sums:
(P[i + n] - P[i]) x B^-i with P[k] = sum over j < k of h(word j) B^j, so that one pass serves every n.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
"""Matches the same words in ASCII text in half the time."""
_MARKS_END = 0x20000
"""Behind it there are ideographs and tags alone."""
_DECOMPOSED_TO_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"
_MAX_MARKS = 31
"""More marks in a row than any language puts on a letter."""
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_MAX_CACHED_WORDS = 1_000_000


def normalized(text: str) -> str:
    """Return the form in which texts are compared."""
    if not text.isascii() and _has_long_run_of_marks(text):
        text = _long_run_of_marks().sub(_in_canonical_order, text)
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


@functools.cache
def _marks() -> tuple[int, ...]:
    """Return the characters that stand on others, in any order."""
    return tuple(
        code
        for code in range(_MARKS_END)
        if unicodedata.combining(chr(code)) or chr(code) in _DECOMPOSED_TO_MARKS
    )


@functools.cache
def _is_mark() -> npt.NDArray[np.bool_]:
    """Return for each character, [codes of Unicode], whether it is a mark."""
    table = np.zeros(sys.maxunicode + 1, dtype=bool)
    table[list(_marks())] = True
    return table


@functools.cache
def _long_run_of_marks() -> re.Pattern[str]:
    return re.compile(f"[{''.join(map(chr, _marks()))}]{{{_MAX_MARKS + 1},}}")


def _has_long_run_of_marks(text: str) -> bool:
    # A tenth of the time of the pattern, which is why every text is not searched for it.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    places = np.flatnonzero(_is_mark()[codes])
    return bool(np.any(places[_MAX_MARKS:] - places[:-_MAX_MARKS] == _MAX_MARKS))


def _in_canonical_order(run: re.Match[str]) -> str:
    """Return a run of marks as normalization orders it: decomposed, and stably sorted by their classes.

    `unicodedata.normalize` sorts them in quadratic time, days for one document of marks alone. A run that is in order
    it only passes over, and the result is the same.
    """
    return "".join(
        sorted(unicodedata.normalize("NFKD", "\0".join(run[0])).replace("\0", ""), key=unicodedata.combining)
    )


def text_digest(normalized_text: str) -> bytes:
    """Return the 16 bytes that identify a normalized text."""
    return hashlib.blake2b(normalized_text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def words(normalized_text: str) -> list[str]:
    """Return the words of a normalized text, in order."""
    return (_ASCII_WORD if normalized_text.isascii() else _WORD).findall(normalized_text)


class _WordHashes(dict[str, int]):
    """Maps each word to its 64-bit hash, which is computed at the first look-up."""

    def __missing__(self, word: str) -> int:
        content = word.encode("utf-8", "surrogatepass")
        value = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        self[word] = value
        return value


class WordHasher:
    """Hashes words and n-grams of words; caches the hashes of words."""

    def __init__(self) -> None:
        self._cache = _WordHashes()
        self._powers = np.ones(1, dtype=np.uint64)
        self._inverses = np.ones(1, dtype=np.uint64)

    def hashes(self, text_words: Sequence[str]) -> Hashes:
        """Return one 64-bit hash for each word."""
        if len(self._cache) > _MAX_CACHED_WORDS:
            # Bounded: a corpus has more different words (numbers, names) than memory should hold.
            self._cache.clear()
        # No Python code runs for a word that is known, and no list of a million numbers is made.
        return np.fromiter(map(self._cache.__getitem__, text_words), dtype=np.uint64, count=len(text_words))

    def ngrams(self, word_hashes: Hashes, lengths: Sequence[int]) -> list[Hashes]:
        """Return for each n of `lengths` the hashes [words - n + 1] of all runs of n words; empty for fewer words."""
        count = len(word_hashes)
        self._extend_powers(count)
        # All arithmetic wraps around at 2^64, which is what makes the hash a polynomial modulo 2^64.
        sums = np.zeros(count + 1, dtype=np.uint64)
        np.cumsum(word_hashes * self._powers[:count], out=sums[1:])
        return [
            _mixed((sums[n:] - sums[:-n]) * self._inverses[: count - n + 1] + np.uint64(n))
            if n <= count
            else np.empty(0, dtype=np.uint64)
            for n in lengths
        ]

    def _extend_powers(self, count: int) -> None:
        if count + 1 > len(self._powers):
            size = max(1024, 2 * (count + 1))
            self._powers = _powers(_BASE, size)
            self._inverses = _powers(_INVERSE, size)


def _powers(base: int, size: int) -> Hashes:
    factors = np.full(size, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _mixed(values: Hashes) -> Hashes:
    """Spread the bits of each value over all 64 (the finalizer of MurmurHash3): minima and low bits are used.

    The values are changed in place, since they are as many as words.
    """
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values ^= values >> np.uint64(33)
        values *= np.uint64(multiplier)
    values ^= values >> np.uint64(33)
    return values
