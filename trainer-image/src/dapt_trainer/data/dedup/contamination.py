"""Evaluation items in training documents: found by word n-grams, dropped and counted by task.

A document contains an item when it contains, after normalization,
- any 13 words in a row of the item's question (Brown et al. 2020, GPT-3, appendix C), or
- a shorter question as a whole, when it has at least `MIN_QUESTION_WORDS` words, or
- the question followed by its right answer, also with the word "answer" between, when both together have at least
  `MIN_ITEM_WORDS` words.
A probe's prompt is the beginning of a statement, not a question: below `MIN_PROMPT_WORDS` words it counts only together
with its answer. A short question that points to its choices ("which of the following is true?") stands in many texts
that are no items: it counts only with its answer or with its choices behind it, also numbered by letters. Items shorter
than that are in every text and cannot be looked for; their number is told.
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
_MARKS = np.uint64((1 << 22) - 1)


@dataclass(frozen=True)
class EvaluationItem:
    """What must not be trained on."""

    task: str
    question: str
    answer: str
    is_prompt: bool = False
    """A probe's prompt: the beginning of a statement."""
    choices: tuple[str, ...] = ()
    """All answers, as texts."""


@dataclass(frozen=True)
class ContaminationIndex:
    """Hashes of the n-grams of all items, by their length in words."""

    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    """Numbers of words that are looked for."""
    hashes: tuple[Hashes, ...] = ()
    """For each length, sorted."""
    owners: tuple[npt.NDArray[np.int32], ...] = ()
    """For each length the index of the task that each hash belongs to."""
    too_short: int = 0
    """Items that cannot be looked for."""

    @cached_property
    def _marks(self) -> list[npt.NDArray[np.bool_]]:
        """For each length a table of the hashes' low bits: most n-grams are turned away by one look."""
        tables = []
        for known in self.hashes:
            table = np.zeros(int(_MARKS) + 1, dtype=np.bool_)
            table[known & _MARKS] = True
            tables.append(table)
        return tables

    def find(self, ngrams: Sequence[Hashes], word_counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The first task with an item in each document of a batch, or -1.

        Args:
            ngrams: for each of `lengths` the hashes over all words of the batch in a row.
            word_counts: [D] words of each document.
        """
        result = np.full(len(word_counts), -1, dtype=np.int32)
        if not self.lengths or not len(word_counts):
            return result
        ends = np.cumsum(word_counts)
        for length, batch, known, owners, marks in zip(
            self.lengths, ngrams, self.hashes, self.owners, self._marks, strict=True
        ):
            maybe = np.flatnonzero(marks[batch & _MARKS])
            places = np.searchsorted(known, batch[maybe])
            places[places == len(known)] = 0
            found = known[places] == batch[maybe]
            hits, places = maybe[found], places[found]
            documents = np.searchsorted(ends, hits, side="right")
            inside = hits + length <= ends[documents]  # not across the end of a document
            for document, owner in zip(
                documents[inside].tolist(), owners[places[inside]].tolist(), strict=True
            ):
                if result[document] < 0 or owner < result[document]:
                    result[document] = owner
        return result


def contamination_index(items: Iterable[EvaluationItem]) -> ContaminationIndex:
    """Build the index of all items; an n-gram that two tasks share belongs to the first."""
    hasher = WordHasher()
    tasks: list[str] = []
    found: dict[int, dict[int, int]] = {}
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
                found.setdefault(length, {}).setdefault(value, tasks.index(item.task))
    lengths = tuple(sorted(found))
    sorted_items = [sorted(found[length].items()) for length in lengths]
    return ContaminationIndex(
        tasks=tuple(tasks),
        lengths=lengths,
        hashes=tuple(np.array([value for value, _ in pairs], dtype=np.uint64) for pairs in sorted_items),
        owners=tuple(np.array([owner for _, owner in pairs], dtype=np.int32) for pairs in sorted_items),
        too_short=too_short,
    )


def _runs(item: EvaluationItem) -> list[list[str]]:
    """Runs of words of which each 13 in a row, or the whole, give the item away."""
    question, answer = words(normalized(item.question)), words(normalized(item.answer))
    if len(question) >= NGRAM_WORDS:
        return [question]
    least = MIN_PROMPT_WORDS if item.is_prompt else MIN_QUESTION_WORDS
    runs = []
    if len(question) >= least and _POINTS_TO_CHOICES not in question:
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
