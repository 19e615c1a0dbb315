"""Which documents are held out: the first by hash, up to a fraction of the documents and a number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dapt_contract.held_out import max_held_out_tokens
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import TrainingLength
from dapt_trainer.data.packing.held_out import HALVES, Half, HeldOutDocument
from dapt_trainer.data.spool import HeldOutCandidate
from dapt_trainer.errors import InputError

MIN_DOCUMENTS = 3
"""One a half, and one to train on."""
_FULL_ENOUGH = 0.9
_KEY_SPACE = 1 << 64


@dataclass(frozen=True)
class HeldOutChoice:
    """One side's held-out documents."""

    halves: dict[Half, list[HeldOutDocument]]
    chosen: tuple[tuple[HeldOutCandidate, int], ...]
    """With the tokens that are held out of each."""
    keys: frozenset[int]
    """Hashes of their normalized texts: nothing with one of these may be trained on."""


def held_out_limit(training: TrainingLength, domain_tokens: int, step_tokens: int) -> int:
    """Most tokens to hold out on a side where the manifest leaves it open: a run that is short reads less.

    Args:
        training: as the manifest has it.
        domain_tokens: in the corpus; one pass of a training that is counted in epochs.
        step_tokens: of one optimizer step.
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
    tokenizer: Any,
    *,
    documents: int,
    fraction: float,
    max_tokens: int,
) -> HeldOutChoice:
    """Choose one side's held-out documents: in each half the first by hash, at least one, half of the tokens a half.

    A half whose first document alone is too long gets its beginning; the rest of that document is not trained on.

    Args:
        side: for messages.
        candidates: documents whose hash is below the fraction, and the first few of each half in any case.
        text_of: the text of a candidate.
        tokenizer: of the base model.
        documents: kept documents of the side.
        fraction: share of documents to hold out.
        max_tokens: of the side.

    Raises:
        InputError: the side has too few documents.
    """
    field = f"spec.corpus.{side}"
    by_half = [
        sorted((c.key, c.source, c.document, c) for c in candidates if c.half == half) for half in (0, 1)
    ]
    if documents < MIN_DOCUMENTS or not all(by_half):
        raise InputError(
            f"{field}: {documents} different document(s) are too few: one is held out for each of two halves and at "
            "least one is trained on; add documents (a text file is one document, a JSON line is one)"
        )
    threshold = int(fraction * _KEY_SPACE)
    halves: dict[Half, list[HeldOutDocument]] = {}
    chosen: list[tuple[HeldOutCandidate, int]] = []
    for name, ordered in zip(HALVES, by_half, strict=True):
        most = max(1, max_tokens // 2)
        picked = _first_by_hash([entry[3] for entry in ordered], threshold, most)
        if picked:
            halves[name] = [_document(text_of(candidate), tokenizer) for candidate in picked]
        else:
            picked = [ordered[0][3]]
            halves[name] = [_beginning(text_of(picked[0]), tokenizer, most)]
        chosen += zip(picked, [len(document.ids) for document in halves[name]], strict=True)
    return HeldOutChoice(halves, tuple(chosen), frozenset(candidate.key for candidate, _ in chosen))


def _first_by_hash(ordered: list[HeldOutCandidate], threshold: int, most: int) -> list[HeldOutCandidate]:
    picked: list[HeldOutCandidate] = []
    keys: set[int] = set()
    tokens = 0
    for candidate in ordered:
        if candidate.key in keys:
            continue
        if (candidate.key >= threshold and picked) or tokens >= _FULL_ENOUGH * most:
            break
        if tokens + candidate.tokens <= most:
            picked.append(candidate)
            keys.add(candidate.key)
            tokens += candidate.tokens
    return picked


def _document(text: str, tokenizer: Any) -> HeldOutDocument:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return HeldOutDocument(ids, len(text.encode("utf-8", "surrogatepass")), text)


def _beginning(text: str, tokenizer: Any, tokens: int) -> HeldOutDocument:
    """The first `tokens` tokens, or fewer where the cut makes more of them."""
    cut = tokenizer.encode(text, add_special_tokens=False).offsets[tokens - 1][1]
    document = _document(text[:cut], tokenizer)
    while len(document.ids) > tokens:
        cut -= 1
        document = _document(text[:cut], tokenizer)
    return document
