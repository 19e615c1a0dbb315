"""Chooses the documents to hold out: the first by hash, up to a fraction of the documents and a number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dapt_contract.inputs.held_out import max_held_out_tokens
from dapt_contract.layout import HELD_OUT
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import PrepareConfig, TrainingLength
from dapt_trainer.data.dedup.held_out_neighbours import HeldOutShingles, can_be_found
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.packing.held_out import HALVES, Half, HeldOutDocument, write_held_out
from dapt_trainer.data.packing.leads import with_lead
from dapt_trainer.data.slices.merge import MergedSide
from dapt_trainer.data.slices.spooled_source import KEY_SPACE, HeldOutCandidate, SpooledSource
from dapt_trainer.data.text import Hashes
from dapt_trainer.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MIN_DOCUMENTS = 3
"""One document for each half, and one to train on."""
_MAX_LATER_CANDIDATES = 3
"""Candidates of a half above the threshold that are tried: with more, a half would hold its shortest documents."""
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
    token_limit: int | None = None
    """Tokens at which more documents of the fraction were left out; None: all of the fraction are held out."""

    @property
    def documents(self) -> list[HeldOutDocument]:
        """Return the documents of both halves."""
        return [document for half in HALVES for document in self.halves[half]]


@dataclass(frozen=True)
class Corpus:
    """Holds all sources of both sides, and what is held out of them."""

    spooled: list[SpooledSource]
    choices: dict[Side, HeldOutChoice]
    shared: dict[str, int] = field(default_factory=dict)
    """Number of a source's documents that stand on the other side too, by its name."""

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


def limits_of(config: PrepareConfig, corpus: Corpus, sequence_length_tokens: int) -> HeldOutLimits:
    """Return the bounds of each side's held-out text; a corpus whose sides are all read."""
    domain_tokens = sum(int(spool.token_counts.sum()) for spool in corpus.spooled if spool.side == "domain")
    step_tokens = sequence_length_tokens * config.global_batch_size
    max_tokens = config.held_out_max_tokens or held_out_limit(config.training, domain_tokens, step_tokens)
    return HeldOutLimits(config.held_out_fraction, max_tokens)


def write_choices(
    folder: Path, choices: Mapping[Side, HeldOutChoice], tokenizers: Sequence[Tokenizer]
) -> None:
    """Write the held-out documents of all sides below a prepared folder.

    Args:
        folder: root of what prepare makes.
        choices: of each side.
        tokenizers: all that the text is scored in, the base model's first; empty where every token is scored.
    """
    for side, choice in choices.items():
        for half in HALVES:
            documents = [with_lead(document, tokenizers) for document in choice.halves[half]]
            write_held_out(folder / HELD_OUT, side, half, documents)


def choose_sides(
    merged: Mapping[Side, MergedSide],
    corpus: Corpus,
    tokenizer: Tokenizer,
    limits: HeldOutLimits,
    problems: Problems,
) -> None:
    """Choose the held-out documents of both sides, and count the documents that stand on both.

    Such a document is held out of neither side: learning and forgetting could not be told apart on it.

    Args:
        merged: the sides, which were read to their ends.
        corpus: gets the choices and the counts.
        tokenizer: of the base model.
        limits: of each side.
        problems: gets a sentence for each side that has too few documents of its own.
    """
    domain_keys, general_keys = _keys(corpus, "domain"), _keys(corpus, "general")
    shared = np.intersect1d(domain_keys, general_keys)
    corpus.shared.update({spool.name: int(np.isin(spool.keys, shared).sum()) for spool in corpus.spooled})
    for side, merged_side in merged.items():
        spools = {spool.index: spool for spool in corpus.spooled if spool.side == side}
        try:
            corpus.choices[side] = choose(
                side,
                _own_candidates(side, merged_side.candidates, spools, shared, corpus.held_out_shingles),
                merged_side.candidate_text,
                tokenizer,
                num_documents=_num_documents(spools),
                limits=limits,
            )
        except InputError as error:
            problems.add_error(error)


def _keys(corpus: Corpus, side: Side) -> Hashes:
    keys = [spool.keys for spool in corpus.spooled if spool.side == side]
    return np.concatenate(keys) if keys else np.empty(0, dtype=np.uint64)


def _own_candidates(
    side: Side,
    candidates: Sequence[HeldOutCandidate],
    spools: Mapping[int, SpooledSource],
    shared: Hashes,
    held_out: HeldOutShingles,
) -> list[HeldOutCandidate]:
    """Return the candidates of a side that stand on no other side, and that copies can be told from.

    Args:
        side: for messages.
        candidates: all of the side.
        spools: sources of the side, by their index.
        shared: sorted hashes of the texts that both sides have.
        held_out: what the other side holds out already.

    Raises:
        InputError: every candidate of a half stands on the other side too.
    """
    is_shared = np.isin(np.array([candidate.key for candidate in candidates], dtype=np.uint64), shared)
    own: list[HeldOutCandidate] = []
    for half in range(len(HALVES)):
        unrepeated = [
            (candidate, is_on_both)
            for candidate, is_on_both in zip(candidates, is_shared.tolist(), strict=True)
            if candidate.half == half and not _is_repeat(candidate, spools)
        ]
        unshared = [
            candidate
            for candidate, is_on_both in unrepeated
            if not is_on_both and not held_out.is_near(spools[candidate.source].sketch(candidate.document))
        ]
        # A side that is too small anyway is refused for that.
        if _num_documents(spools) >= MIN_DOCUMENTS and unrepeated and not unshared:
            other = "general" if side == "domain" else "domain"
            raise InputError(
                f"spec.corpus.{side}: its documents stand in spec.corpus.{other} too, so that none can be held out of "
                "it to tell learning from forgetting; remove them from one of the two, or add other text"
            )
        # Copies of a very short document cannot be told from other text: it is held out only where there is no other.
        own += [
            candidate
            for candidate in unshared
            if can_be_found(spools[candidate.source].sketch(candidate.document))
        ] or unshared
    return own


def _num_documents(spools: Mapping[int, SpooledSource]) -> int:
    """Return the number of a side's different documents."""
    return sum(len(spool.token_counts) - spool.repeats for spool in spools.values())


def _is_repeat(candidate: HeldOutCandidate, spools: Mapping[int, SpooledSource]) -> bool:
    is_repeat = spools[candidate.source].is_repeat
    return is_repeat is not None and bool(is_repeat[candidate.document])


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
    is_limited = False
    for half, half_candidates in zip(HALVES, by_half, strict=True):
        picked = _first_by_hash(half_candidates, threshold, max_half_tokens)
        keys = {candidate.key for candidate in picked}
        is_limited |= any(
            candidate.key < threshold and candidate.key not in keys for candidate in half_candidates
        )
        if picked:
            halves[half] = [_document(text_of(candidate), tokenizer) for candidate in picked]
        else:
            picked = half_candidates[:1]
            halves[half] = [_beginning(text_of(picked[0]), tokenizer, max_half_tokens)]
        chosen += zip(picked, [len(document.ids) for document in halves[half]], strict=True)
    return HeldOutChoice(
        halves,
        tuple(chosen),
        frozenset(candidate.key for candidate, _ in chosen),
        token_limit=limits.max_tokens if is_limited else None,
    )


def _first_by_hash(
    candidates: Sequence[HeldOutCandidate], threshold: int, max_tokens: int
) -> list[HeldOutCandidate]:
    """Return the first candidates that fit; none when the first one alone is too long."""
    picked: list[HeldOutCandidate] = []
    keys: set[int] = set()
    tokens = 0
    num_below = sum(candidate.key < threshold for candidate in candidates)
    for candidate in candidates[: num_below + _MAX_LATER_CANDIDATES]:
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
