"""Counts the words of a text as a tokenizer splits it: runs of tokens within which a new token may lie.

Where a pre-tokenizer splits the text, its words are used. A tokenizer without one (SentencePiece's BPE merges over the
whole text) gets the boundaries that SentencePiece trains with: a word begins at white space, and letters, digits and
other characters do not mix (Kudo and Richardson 2018); digits stay alone where no old token joins them to anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from dapt_trainer.tokenization.learn_merges import Word

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\u2581"
"""The character that SentencePiece writes for a space."""
_MAX_WORD_TOKENS = 64
"""Longer runs (text without spaces) are counted in pieces."""
_BATCH_CHARACTERS = 1_000_000


def count_words(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    excluded: Collection[int],
    is_boundary: Callable[[int, int], bool],
    beat: Callable[[], None] = lambda: None,
) -> Counter[Word]:
    """Count the runs of at least two tokens.

    Args:
        tokenizer: of the `tokenizers` library.
        texts: the sample.
        excluded: ids that are part of no new token.
        is_boundary: whether a word ends between two neighbouring tokens that the pre-tokenizer leaves together.
        beat: called after each batch.
    """
    counts: Counter[Word] = Counter()
    excluded_ids = frozenset(excluded)
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            for word in _runs(encoding.ids, encoding.word_ids, excluded_ids, is_boundary):
                counts[word] += 1
        beat()
    return counts


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _runs(
    ids: list[int],
    word_ids: list[int | None],
    excluded: frozenset[int],
    is_boundary: Callable[[int, int], bool],
) -> Iterator[Word]:
    run: list[int] = []
    last_word: int | None = None
    for number, word in zip(ids, word_ids, strict=True):
        must_end = word != last_word or number in excluded or len(run) >= _MAX_WORD_TOKENS
        if run and (must_end or is_boundary(run[-1], number)):
            if len(run) > 1:
                yield tuple(run)
            run = []
        if number not in excluded:
            run.append(number)
        last_word = word
    if len(run) > 1:
        yield tuple(run)


class Boundaries:
    """Decides where words end between two tokens, beyond the splits of a pre-tokenizer.

    Digits stay alone where no old token joins them to each other, or to the space before them: such a tokenizer splits
    numbers into digits on purpose. The rest is for tokenizers that split no text before they merge.

    Args:
        vocabulary: of the old tokenizer.
        space: the character that it writes for a space at the beginning of a word.
        digits_alone: whether digits are the only thing that ends a word.
    """

    def __init__(self, vocabulary: dict[str, int], *, space: str = SPACE, digits_alone: bool = False) -> None:
        self._texts = {number: text for text, number in vocabulary.items()}
        self._space = space
        self._digits_alone = digits_alone
        self._joins_digits = any(re.search(r"\d\d", text) for text in vocabulary)
        self._joins_space_and_digit = any(re.match(rf"{space}+\d", text) for text in vocabulary)
        self._cache: dict[tuple[int, int], bool] = {}

    def __call__(self, left: int, right: int) -> bool:
        """Return whether a word ends between the two tokens."""
        pair = (left, right)
        if pair not in self._cache:
            self._cache[pair] = self._ends_between(self._texts[left], self._texts[right])
        return self._cache[pair]

    def _ends_between(self, left: str, right: str) -> bool:
        if right.startswith(self._space):
            return not self._digits_alone and bool(left.strip(self._space))
        if not left.strip(self._space):
            return right[0].isdecimal() and not self._joins_space_and_digit
        before, after = _character_class(left[-1]), _character_class(right[0])
        if before == after == "digit":
            return not self._joins_digits
        return before != after and not self._digits_alone


def _character_class(character: str) -> str:
    if character.isdecimal():
        return "digit"
    if character.isspace():
        return "space"
    # Combining marks belong to the letters before them: they are not alphabetic, but \w matches them.
    return "letter" if character.isalpha() or re.match(r"\w", character) else "other"
