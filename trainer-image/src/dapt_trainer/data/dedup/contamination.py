"""Finds evaluation items in training documents by word n-grams.

A document contains an item when it contains, after normalization,
- any 13 words in a row of the item's question (Brown et al. 2020, GPT-3, appendix C), or
- a shorter question as a whole, when it has at least `MIN_QUESTION_WORDS` words, or
- the question followed by its right answer, also with the word "answer" between, when both together have at least
  `MIN_ITEM_WORDS` words.
A probe's prompt is the beginning of a statement, not a question: below `MIN_PROMPT_WORDS` words it counts only together
with its answer. A short question that points to its choices ("which of the following is true?") appears in many texts
that are no items: it counts only when its answer or its choices follow, which may be numbered by letters. Shorter items
appear in too many texts and cannot be searched for; their number is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dapt_trainer.data.text import Hashes, WordHasher, normalized, words

NGRAM_WORDS = 13
MIN_QUESTION_WORDS = 5
MIN_PROMPT_WORDS = 8
MIN_ITEM_WORDS = 5
_POINTS_TO_CHOICES = "following"
_LETTERS = "abcdefghij"
_FILTER_BITS = np.uint64((1 << 22) - 1)


@dataclass(frozen=True)
class EvaluationItem:
    """Holds an item that must not be trained on."""

    task: str
    question: str
    answer: str
    is_prompt: bool = False
    """Whether the question is a probe's prompt: the beginning of a statement."""
    choices: tuple[str, ...] = ()
    """All answers, as texts."""


@dataclass(frozen=True)
class ContaminationIndex:
    """Holds the hashes of the n-grams of all items, by their length in words."""

    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    """Lengths of the n-grams that are searched for, in words."""
    hashes: tuple[Hashes, ...] = ()
    """For each length the hashes, sorted."""
    owners: tuple[npt.NDArray[np.int32], ...] = ()
    """For each length the index of the task that each hash belongs to."""
    too_short: int = 0
    """Number of items that cannot be searched for."""

    @cached_property
    def _filters(self) -> list[npt.NDArray[np.bool_]]:
        """Return for each length a table of the hashes' low bits, which rules out most n-grams without a search."""
        tables = []
        for hashes in self.hashes:
            table = np.zeros(int(_FILTER_BITS) + 1, dtype=np.bool_)
            table[hashes & _FILTER_BITS] = True
            tables.append(table)
        return tables

    def find(self, ngrams: Sequence[Hashes], word_counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return for each document of a batch the index of the first task with an item in it, or -1.

        Args:
            ngrams: for each of `lengths` the hashes over all words of the batch in a row.
            word_counts: [D] words of each document.
        """
        result = np.full(len(word_counts), -1, dtype=np.int32)
        if not self.lengths or not len(word_counts):
            return result
        ends = np.cumsum(word_counts)
        for length, batch_hashes, hashes, owners, table in zip(
            self.lengths, ngrams, self.hashes, self.owners, self._filters, strict=True
        ):
            candidates = np.flatnonzero(table[batch_hashes & _FILTER_BITS])
            places = np.searchsorted(hashes, batch_hashes[candidates])
            # `searchsorted` gives the length for a hash behind the last: any valid place will do, since the
            # comparison fails there.
            places[places == len(hashes)] = 0
            is_hit = hashes[places] == batch_hashes[candidates]
            hits, places = candidates[is_hit], places[is_hit]
            documents = np.searchsorted(ends, hits, side="right")
            # The hashes run over the whole batch: an n-gram that crosses the end of a document is in none.
            is_inside = hits + length <= ends[documents]
            for document, owner in zip(
                documents[is_inside].tolist(), owners[places[is_inside]].tolist(), strict=True
            ):
                if result[document] < 0 or owner < result[document]:
                    result[document] = owner
        return result


def contamination_index(items: Iterable[EvaluationItem]) -> ContaminationIndex:
    """Build the index of all items; an n-gram that two tasks share belongs to the first."""
    hasher = WordHasher()
    tasks: list[str] = []
    owners: dict[int, dict[int, int]] = {}
    too_short = 0
    for item in items:
        if item.task not in tasks:
            tasks.append(item.task)
        runs = _runs(item)
        too_short += not runs
        for run in runs:
            length = min(NGRAM_WORDS, len(run))
            (hashes,) = hasher.ngrams(hasher.hashes(run), [length])
            for value in hashes.tolist():
                owners.setdefault(length, {}).setdefault(value, tasks.index(item.task))
    lengths = tuple(sorted(owners))
    sorted_owners = [sorted(owners[length].items()) for length in lengths]
    return ContaminationIndex(
        tasks=tuple(tasks),
        lengths=lengths,
        hashes=tuple(np.array([value for value, _ in pairs], dtype=np.uint64) for pairs in sorted_owners),
        owners=tuple(np.array([owner for _, owner in pairs], dtype=np.int32) for pairs in sorted_owners),
        too_short=too_short,
    )


def _runs(item: EvaluationItem) -> list[list[str]]:
    """Return runs of words by which an item is found: by any 13 words of a run, or by the whole of a shorter one."""
    question, answer = words(normalized(item.question)), words(normalized(item.answer))
    if len(question) >= NGRAM_WORDS:
        return [question]
    min_words = MIN_PROMPT_WORDS if item.is_prompt else MIN_QUESTION_WORDS
    runs = []
    if len(question) >= min_words and _POINTS_TO_CHOICES not in question:
        runs.append(question)
    if question and len(question) + len(answer) >= MIN_ITEM_WORDS:
        runs += [question + answer, [*question, "answer", *answer]]
    if _POINTS_TO_CHOICES in question and item.choices:
        choices = [words(normalized(choice)) for choice in item.choices]
        plain = [word for choice in choices for word in choice]
        lettered = [
            word for letter, choice in zip(_LETTERS, choices, strict=False) for word in (letter, *choice)
        ]
        runs += [[*question, *between, *text] for text in (plain, lettered) for between in ((), ("choices",))]
    return [run[:NGRAM_WORDS] for run in runs]
