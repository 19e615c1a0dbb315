"""Learns byte-pair merges that continue those of a tokenizer.

The words of the sample are taken as the old tokenizer splits them, so a merge joins two neighbouring tokens of one word
and never crosses a boundary of the pre-tokenizer. The pair that occurs most often is merged next (Sennrich et al.
2016): a merge saves one token wherever it applies, so the count of a pair is exactly the number of tokens that the new
token saves; words that are one token already save nothing and are no candidates, however frequent.

New merges rank after all old ones and make tokens that no old merge knows, so the old merges are applied first and
text without a new token is tokenized as before.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_MERGES_A_BEAT = 200

Pair = tuple[int, int]
Word = tuple[int, ...]


@dataclass(frozen=True)
class NewToken:
    """Describes a token to append."""

    text: str
    """Text of the token in the vocabulary."""
    id: int
    constituents: Word
    """Ids of the old tokens that it stands for, in order."""
    saved_tokens: int
    """Tokens that it saves in the sample, beyond what the tokens before it save."""


@dataclass(frozen=True)
class MergeLimits:
    """Limits which merges are learned."""

    max_tokens: int
    """Largest number of new tokens."""
    minimum_frequency: int
    """Occurrences of a pair below which it is not merged."""
    max_characters: int = 64
    """Longest new token: a line of dashes is no word."""


@dataclass
class Learned:
    """Holds the new tokens and merges in the order in which they were learned."""

    tokens: list[NewToken] = field(default_factory=list)
    merges: list[Pair] = field(default_factory=list)
    """Ids of the two parts; several merges may make the same token."""


def learn_merges(
    words: Mapping[Word, int],
    vocabulary: Mapping[str, int],
    limits: MergeLimits,
    *,
    constituents: Mapping[int, Word] | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Learned:
    """Learn merges, those that save most first, until there are enough tokens or no pair is frequent enough.

    Args:
        words: runs of token ids within which merges are allowed, with their counts.
        vocabulary: ids of all tokens by their texts; the new ids follow the largest.
        limits: for the new tokens.
        constituents: old ids behind the tokens of `words` that are new themselves.
        beat: called now and then.
    """
    return _Learner(words, vocabulary, limits, constituents or {}).run(beat)


class _Learner:
    def __init__(
        self,
        words: Mapping[Word, int],
        vocabulary: Mapping[str, int],
        limits: MergeLimits,
        constituents: Mapping[int, Word],
    ) -> None:
        ordered = sorted((word, count) for word, count in words.items() if len(word) > 1)
        self._words = [list(word) for word, _ in ordered]
        self._word_counts = [count for _, count in ordered]
        self._vocabulary = vocabulary
        self._limits = limits
        self._first_id = max(vocabulary.values(), default=-1) + 1
        self._learned = Learned()
        self._ranks: dict[Pair, int] = {}
        self._merged_ids: dict[Pair, int] = {}
        self._new_ids: dict[str, int] = {}
        self._texts = {number: text for text, number in vocabulary.items()}
        self._constituents = dict(constituents)
        self._pair_counts: Counter[Pair] = Counter()
        self._words_with: dict[Pair, set[int]] = {}
        for number, word in enumerate(self._words):
            self._count_pairs(number, word, 1)
        self._heap = [(-count, pair) for pair, count in self._pair_counts.items()]
        heapq.heapify(self._heap)

    def run(self, beat: Callable[[], None]) -> Learned:
        """Merge until there are enough tokens or no pair is frequent enough."""
        min_count = max(1, self._limits.minimum_frequency)
        while self._heap:
            negative_count, pair = heapq.heappop(self._heap)
            count = self._pair_counts.get(pair, 0)
            if count < min_count:
                # Entries may be out of date, but each pair has one whose count is not too low: no better one is left.
                if -negative_count < min_count:
                    break
                continue
            # Counts fall as other pairs are merged: the pair goes back under its present count.
            if count != -negative_count:
                heapq.heappush(self._heap, (-count, pair))
                continue
            text = self._texts[pair[0]] + self._texts[pair[1]]
            new_id = self._new_ids.get(text)
            # A merge that makes an old token would change how text without new tokens is split.
            if text in self._vocabulary or len(text) > self._limits.max_characters:
                continue
            if new_id is None and len(self._learned.tokens) >= self._limits.max_tokens:
                break
            self._merge(pair, text, new_id, count)
            if len(self._learned.merges) % _MERGES_A_BEAT == 0:
                beat()
        return self._learned

    def _merge(self, pair: Pair, text: str, new_id: int | None, count: int) -> None:
        """Add the merge of a pair and apply it to all words.

        Args:
            pair: the two parts.
            text: of the merged token.
            new_id: of that token, where another merge made it already; None: it is new.
            count: occurrences of the pair.
        """
        if new_id is None:
            new_id = self._first_id + len(self._learned.tokens)
            parts = (*self._parts(pair[0]), *self._parts(pair[1]))
            self._learned.tokens.append(NewToken(text, new_id, parts, count))
            self._new_ids[text] = new_id
            self._texts[new_id] = text
            self._constituents[new_id] = parts
        self._ranks[pair] = len(self._learned.merges)
        self._merged_ids[pair] = new_id
        self._learned.merges.append(pair)
        changed_pairs: set[Pair] = set()
        for number in sorted(self._words_with.pop(pair)):
            word = self._words[number]
            changed_pairs |= self._count_pairs(number, word, -1)
            self._words[number] = self._merged(word)
            changed_pairs |= self._count_pairs(number, self._words[number], 1)
        for changed in changed_pairs:
            remaining = self._pair_counts.get(changed, 0)
            if remaining > 0 and changed not in self._ranks:
                heapq.heappush(self._heap, (-remaining, changed))

    def _merged(self, word: list[int]) -> list[int]:
        """Return the word as the extended tokenizer splits it: the merge of the lowest rank first, leftmost first."""
        parts = list(word)
        while len(parts) > 1:
            ranked = [
                (self._ranks[pair], index)
                for index, pair in enumerate(itertools.pairwise(parts))
                if pair in self._ranks
            ]
            if not ranked:
                break
            _, index = min(ranked)
            parts[index : index + 2] = [self._merged_ids[parts[index], parts[index + 1]]]
        return parts

    def _count_pairs(self, number: int, word: list[int], sign: int) -> set[Pair]:
        """Add a word's pairs to the counts, or subtract them; return the pairs."""
        pairs = _pairs(word)
        for pair in pairs:
            self._pair_counts[pair] += sign * self._word_counts[number]
            if sign > 0:
                self._words_with.setdefault(pair, set()).add(number)
            elif pair in self._words_with:
                self._words_with[pair].discard(number)
            if self._pair_counts[pair] <= 0:
                del self._pair_counts[pair]
                self._words_with.pop(pair, None)
        return set(pairs)

    def _parts(self, number: int) -> Word:
        return self._constituents.get(number, (number,))


def _pairs(word: list[int]) -> list[Pair]:
    """Return the neighbours that can be merged at once: of three equal tokens only the first two are a pair."""
    pairs: list[Pair] = []
    overlaps = False
    for pair in itertools.pairwise(word):
        overlaps = not overlaps and bool(pairs) and pair[0] == pair[1] and pairs[-1] == pair
        if not overlaps:
            pairs.append(pair)
    return pairs
