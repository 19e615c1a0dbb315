"""Chooses the documents to hold out: the first by hash, up to a fraction of the documents and a number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dapt_contract.held_out import max_held_out_tokens
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TrainingLength
from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles
from dapt_trainer.data.packing.held_out import HALVES, Half, HeldOutDocument
from dapt_trainer.data.spool import KEY_SPACE, HeldOutCandidate, SpooledSource
from dapt_trainer.data.text import Hashes
from dapt_trainer.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MIN_DOCUMENTS = 3
"""One document for each half, and one to train on."""
_FULL_FRACTION = 0.9
"""Share of its tokens at which a half is full enough: further documents are not searched for a smaller one."""


@dataclass(frozen=True)
class HeldOutLimits:
    """Holds the two upper bounds of one side's held-out text."""

    fraction: float
    """Share of the side's documents."""
    max_tokens: int


@dataclass(frozen=True)
class HeldOutChoice:
    """Holds one side's held-out documents."""

    halves: dict[Half, list[HeldOutDocument]]
    chosen: tuple[tuple[HeldOutCandidate, int], ...]
    """Each document with the number of its tokens that are held out."""
    keys: frozenset[int]
    """Hashes of the normalized texts; no document with one of these may be trained on."""

    @property
    def documents(self) -> list[HeldOutDocument]:
        """Return the documents of both halves."""
        return [document for half in HALVES for document in self.halves[half]]


@dataclass(frozen=True)
class Corpus:
    """Holds all sources of both sides, and what is held out of them."""

    spooled: list[SpooledSource]
    choices: dict[Side, HeldOutChoice]

    @property
    def held_out_documents(self) -> list[HeldOutDocument]:
        """Return the held-out documents of both sides."""
        return [document for choice in self.choices.values() for document in choice.documents]

    @property
    def held_out_keys(self) -> Hashes:
        """Return the sorted hashes of all held-out texts of both sides."""
        keys = set().union(*(choice.keys for choice in self.choices.values()))
        return np.array(sorted(keys), dtype=np.uint64)

    @property
    def held_out_shingles(self) -> HeldOutShingles:
        """Return the shingles of all held-out texts of both sides."""
        return HeldOutShingles([document.text for document in self.held_out_documents])


def held_out_limit(training: TrainingLength, domain_tokens: int, step_tokens: int) -> int:
    """Return the largest number of tokens to hold out on a side where the manifest leaves it open.

    Args:
        training: as the manifest has it.
        domain_tokens: tokens of the corpus: one pass of a training whose length is given in epochs.
        step_tokens: tokens of one optimizer step.
    """
    checkpoints = training.checkpoints
    if training.tokens is not None:
        tokens = float(training.tokens)
    elif training.steps is not None:
        tokens, checkpoints = float(training.steps * step_tokens), min(checkpoints, training.steps)
    else:
        tokens = domain_tokens * (training.epochs or 1.0)
    return max_held_out_tokens(tokens, checkpoints)


def choose(
    side: Side,
    candidates: Sequence[HeldOutCandidate],
    text_of: Callable[[HeldOutCandidate], str],
    tokenizer: Tokenizer,
    *,
    num_documents: int,
    limits: HeldOutLimits,
) -> HeldOutChoice:
    """Choose one side's held-out documents: in each half the first by hash, at least one, up to half of the tokens.

    When the first document of a half is too long by itself, its beginning is held out; the rest of it is not trained
    on.

    Args:
        side: for messages.
        candidates: documents whose hash is below the fraction, and the first few of each half in any case.
        text_of: returns the text of a candidate.
        tokenizer: of the base model.
        num_documents: kept documents of the side.
        limits: of the side.

    Raises:
        InputError: the side has too few documents.
    """
    by_half = [
        sorted(
            (candidate for candidate in candidates if candidate.half == half),
            key=lambda candidate: (candidate.key, candidate.source, candidate.document),
        )
        for half in range(len(HALVES))
    ]
    if num_documents < MIN_DOCUMENTS or not all(by_half):
        raise InputError(
            f"spec.corpus.{side}: {num_documents} different document(s) are too few: one is held out for each of two "
            "halves and at least one is trained on; add documents (a text file is one document, a JSON line is one)"
        )
    threshold = int(limits.fraction * KEY_SPACE)
    max_half_tokens = max(1, limits.max_tokens // 2)
    halves: dict[Half, list[HeldOutDocument]] = {}
    chosen: list[tuple[HeldOutCandidate, int]] = []
    for half, half_candidates in zip(HALVES, by_half, strict=True):
        picked = _first_by_hash(half_candidates, threshold, max_half_tokens)
        if picked:
            halves[half] = [_document(text_of(candidate), tokenizer) for candidate in picked]
        else:
            picked = half_candidates[:1]
            halves[half] = [_beginning(text_of(picked[0]), tokenizer, max_half_tokens)]
        chosen += zip(picked, [len(document.ids) for document in halves[half]], strict=True)
    return HeldOutChoice(halves, tuple(chosen), frozenset(candidate.key for candidate, _ in chosen))


def _first_by_hash(
    candidates: Sequence[HeldOutCandidate], threshold: int, max_tokens: int
) -> list[HeldOutCandidate]:
    """Return the first candidates that fit; none when the first one alone is too long."""
    picked: list[HeldOutCandidate] = []
    keys: set[int] = set()
    tokens = 0
    for candidate in candidates:
        # Without deduplication two candidates may hold the same text.
        if candidate.key in keys:
            continue
        if (candidate.key >= threshold and picked) or tokens >= _FULL_FRACTION * max_tokens:
            break
        if tokens + candidate.tokens <= max_tokens:
            picked.append(candidate)
            keys.add(candidate.key)
            tokens += candidate.tokens
    return picked


def _document(text: str, tokenizer: Tokenizer) -> HeldOutDocument:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return HeldOutDocument(ids, len(text.encode("utf-8", "surrogatepass")), text)


def _beginning(text: str, tokenizer: Tokenizer, tokens: int) -> HeldOutDocument:
    """Return the beginning of a text with at most `tokens` tokens."""
    cut = tokenizer.encode(text, add_special_tokens=False).offsets[tokens - 1][1]
    document = _document(text[:cut], tokenizer)
    # The cut text may have more tokens than the same characters had in the whole: merges across the cut are gone.
    while len(document.ids) > tokens:
        cut -= 1
        document = _document(text[:cut], tokenizer)
    return document
