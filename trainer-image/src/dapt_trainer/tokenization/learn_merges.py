"""Byte-pair merges that go on where a tokenizer's own stop.

The words of the sample are taken as the old tokenizer leaves them, so a merge joins two neighbouring tokens of one word
and never crosses a boundary of the pre-tokenizer. The pair that occurs most often is merged next (Sennrich et al.
2016): a merge takes one token from each place where it applies, so the count of a pair is exactly the number of tokens
that the new token saves; words that are one token already save nothing and are no candidates, however frequent.

New merges rank behind all old ones and make tokens that no old merge knows, so the old merges are done first and
text without a new token comes out as before.
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
    """A token to append."""

    text: str
    """As it stands in the vocabulary."""
    id: int
    constituents: Word
    """Ids of the old tokens that it stands for, in order."""
    saved_tokens: int
    """In the sample, beyond what the tokens before it save."""


@dataclass
class Learned:
    """What growing found, in the order in which it was found."""

    tokens: list[NewToken] = field(default_factory=list)
    merges: list[Pair] = field(default_factory=list)
    """Ids of the two parts; more than one may make the same token."""


def learn_merges(
    words: Mapping[Word, int],
    text_of: Callable[[int], str],
    *,
    vocabulary: Mapping[str, int],
    first_id: int,
    most_tokens: int,
    minimum_frequency: int,
    longest_characters: int = 64,
    constituents: Mapping[int, Word] | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Learned:
    """Merges in the order of what they save, until there are enough tokens or none is frequent enough.

    Args:
        words: runs of old token ids within which merges are allowed, with their counts.
        text_of: an old token as it stands in the vocabulary.
        vocabulary: every text that is taken, with its id.
        first_id: of the first new token; the others follow.
        most_tokens: new tokens at most.
        minimum_frequency: occurrences of a pair below which it is not merged.
        longest_characters: a longer token is not made; a line of dashes is no word.
        constituents: old ids of tokens in `words` that are new themselves.
        beat: called now and then.
    """
    learner = _Learner(words, text_of, vocabulary, first_id, longest_characters, constituents or {})
    return learner.run(most_tokens, max(1, minimum_frequency), beat)


class _Learner:
    def __init__(
        self,
        words: Mapping[Word, int],
        text_of: Callable[[int], str],
        vocabulary: Mapping[str, int],
        first_id: int,
        longest: int,
        constituents: Mapping[int, Word],
    ) -> None:
        ordered = sorted((word, count) for word, count in words.items() if len(word) > 1)
        self._words = [list(word) for word, _ in ordered]
        self._counts = [count for _, count in ordered]
        self._vocabulary = vocabulary
        self._longest = longest
        self._first_id = first_id
        self._learned = Learned()
        self._ranks: dict[Pair, int] = {}
        self._made: dict[Pair, int] = {}
        self._new_ids: dict[str, int] = {}
        self._old_text = text_of
        self._texts: dict[int, str] = {}
        self._constituents = dict(constituents)
        self._pairs: Counter[Pair] = Counter()
        self._places: dict[Pair, set[int]] = {}
        for number, word in enumerate(self._words):
            self._note(number, word, 1)
        self._heap = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._heap)

    def run(self, most_tokens: int, least: int, beat: Callable[[], None]) -> Learned:
        """Merge until nothing more is to be gained."""
        while self._heap:
            negative, pair = heapq.heappop(self._heap)
            count = self._pairs.get(pair, 0)
            if count < least:
                if -negative < least:
                    break
                continue
            if count != -negative:
                heapq.heappush(self._heap, (-count, pair))
                continue
            text = self._text(pair[0]) + self._text(pair[1])
            known = self._new_ids.get(text)
            if text in self._vocabulary or len(text) > self._longest:
                continue
            if known is None and len(self._learned.tokens) >= most_tokens:
                break
            self._merge(pair, text, known, count)
            if len(self._learned.merges) % _MERGES_A_BEAT == 0:
                beat()
        return self._learned

    def _merge(self, pair: Pair, text: str, known: int | None, count: int) -> None:
        """Note the merge, and apply it wherever the pair stands."""
        number = known
        if number is None:
            number = self._first_id + len(self._learned.tokens)
            parts = (*self._parts(pair[0]), *self._parts(pair[1]))
            self._learned.tokens.append(NewToken(text, number, parts, count))
            self._new_ids[text] = number
            self._texts[number] = text
            self._constituents[number] = parts
        self._ranks[pair] = len(self._learned.merges)
        self._made[pair] = number
        self._learned.merges.append(pair)
        touched: set[Pair] = set()
        for place in sorted(self._places.pop(pair)):
            word = self._words[place]
            touched |= self._note(place, word, -1)
            self._words[place] = self._applied(word)
            touched |= self._note(place, self._words[place], 1)
        for changed in touched:
            left = self._pairs.get(changed, 0)
            if left > 0 and changed not in self._ranks:
                heapq.heappush(self._heap, (-left, changed))

    def _applied(self, word: list[int]) -> list[int]:
        """The word as the grown tokenizer leaves it: the merge of the lowest rank first, leftmost first."""
        parts = list(word)
        while len(parts) > 1:
            ranked = [
                (self._ranks[pair], place)
                for place, pair in enumerate(itertools.pairwise(parts))
                if pair in self._ranks
            ]
            if not ranked:
                break
            _, place = min(ranked)
            parts[place : place + 2] = [self._made[parts[place], parts[place + 1]]]
        return parts

    def _note(self, place: int, word: list[int], sign: int) -> set[Pair]:
        """Add a word's pairs to the counts, or take them away."""
        pairs = _pairs(word)
        for pair in pairs:
            self._pairs[pair] += sign * self._counts[place]
            if sign > 0:
                self._places.setdefault(pair, set()).add(place)
            elif pair in self._places:
                self._places[pair].discard(place)
            if self._pairs[pair] <= 0:
                del self._pairs[pair]
                self._places.pop(pair, None)
        return set(pairs)

    def _text(self, number: int) -> str:
        return self._texts[number] if number in self._texts else self._old_text(number)

    def _parts(self, number: int) -> Word:
        return self._constituents.get(number, (number,))


def _pairs(word: list[int]) -> list[Pair]:
    """Neighbours that can be merged at once: of three equal tokens only the first two are a pair."""
    found: list[Pair] = []
    overlaps = False
    for pair in itertools.pairwise(word):
        overlaps = not overlaps and bool(found) and pair[0] == pair[1] and found[-1] == pair
        if not overlaps:
            found.append(pair)
    return found
