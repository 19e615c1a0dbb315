"""Writes the warnings about the data: sentences with numbers for people. None of them stops a run.

Below 100 M domain tokens retrieval or SFT often does as well, and LoRA forgets less; from 100 M on continued
pre-training pays (docs/training.md has the sources).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dapt_contract.inputs.held_out import MIN_TOKENS
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import ModelFacts, SourceFacts
from dapt_trainer.data.dedup.contamination import MIN_ITEM_WORDS
from dapt_trainer.data.slices.spooled_source import TINY_TOKENS, SpooledSource

NO_LIMITS: Final[Mapping[Side, int]] = {}
SIDES: Final[tuple[Side, ...]] = ("domain", "general")
_SMALL_CORPUS_TOKENS = 100_000_000
_NOTABLE_FRACTION = 0.10
"""Share of a source's documents above which a finding is worth a warning."""
_CUT_FRACTION = 0.5
"""Share of cut documents above which a longer sequence is proposed."""
_MAIN_LANGUAGE_FRACTION = 0.6
"""Share of a sample's documents that makes their language the source's."""
_POOR_FIT_FRACTION = 0.6
"""Characters a token, as a share of those in general text, below which the tokenizer fits the text badly."""


@dataclass(frozen=True)
class SourceFindings:
    """Holds what was found in one source."""

    spool: SpooledSource
    near_duplicates: int
    """Documents that are nearly equal to a held-out one, or contain one."""
    contained: int
    """Short documents that stand in a held-out one."""
    shared: int
    """Documents that the other side has too."""


def warnings_of(
    model: ModelFacts,
    sources: Sequence[SourceFacts],
    findings: Sequence[SourceFindings],
    *,
    trains_all_weights: bool,
    too_short_items: int,
    token_limits: Mapping[Side, int] = NO_LIMITS,
) -> tuple[str, ...]:
    """Return all warnings, the gravest first.

    Args:
        model: the base model.
        sources: what is reported of each source.
        findings: what else was found in each, in the same order.
        trains_all_weights: whether pretraining trains all weights.
        too_short_items: evaluation items that cannot be searched for.
        token_limits: side -> tokens at which more held-out documents were left out; without a side: it has them all.
    """
    warnings: list[str] = []
    if model.has_chat_template:
        warnings.append(
            "The base model has a chat template: continued pre-training costs an instruct model much of its chat "
            "ability; start from the base model where you can."
        )
    domain = sum(source.train_tokens for source in sources if source.side == "domain")
    if domain < _SMALL_CORPUS_TOKENS:
        method = " and train LoRA instead of all weights" if trains_all_weights else ""
        warnings.append(
            f"The domain corpus has {domain:,} training tokens; below {_SMALL_CORPUS_TOKENS:,} consider retrieval or "
            f"fine-tuning instead{method}."
        )
    for side in SIDES:
        held_out = sum(source.held_out_tokens for source in sources if source.side == side)
        if held_out < MIN_TOKENS:
            limit = token_limits.get(side)
            remedy = "fraction" if limit is None else f"maxTokens, which limits them here ({limit:,} a side)"
            warnings.append(
                f"Only {held_out:,} {side} tokens are held out: its perplexity is noisy; raise "
                f"spec.corpus.heldOut.{remedy}."
            )
    warnings += _language_warnings([found.spool for found in findings])
    warnings += _source_warnings(sources, findings)
    if too_short_items:
        warnings.append(
            f"{too_short_items} evaluation item(s) have fewer than {MIN_ITEM_WORDS} words and cannot be searched for "
            "in the corpus."
        )
    return tuple(warnings)


def _language_warnings(spooled: Sequence[SpooledSource]) -> list[str]:
    """Warn of sources in another language than their side, and of sources that the tokenizer fits badly."""
    warnings = []
    for side in ("domain", "general"):
        languages = [
            (spool, main) for spool in spooled if spool.side == side and (main := spool.counts.languages.main)
        ]
        tokens: Counter[str] = Counter()
        for spool, (language, share) in languages:
            if share >= _MAIN_LANGUAGE_FRACTION:
                tokens[language] += int(spool.token_counts.sum())
        if not tokens:
            continue
        main_language = tokens.most_common(1)[0][0]
        for spool, (language, share) in languages:
            if share >= _MAIN_LANGUAGE_FRACTION and language != main_language:
                warnings.append(
                    f"{spool.label}: {share:.0%} of a sample of its documents are in language {language!r}, the {side} "
                    f"side is mostly in {main_language!r}; check that it belongs there."
                )
    general = [spool for spool in spooled if spool.side == "general"]
    characters = sum(spool.counts.languages.characters for spool in general)
    general_per_token = characters / max(1, sum(spool.counts.languages.tokens for spool in general))
    for spool in spooled:
        per_token = spool.counts.languages.characters_per_token
        if spool.side == "domain" and 0 < per_token < _POOR_FIT_FRACTION * general_per_token:
            warnings.append(
                f"{spool.label}: a token holds {per_token:.1f} characters, {general_per_token:.1f} in general text:"
                " the tokenizer knows this language or notation poorly, so training and answers take more tokens;"
                " consider a base model for it, or spec.model.tokenizer.extend."
            )
    return warnings


@dataclass(frozen=True)
class _Count:
    """What was counted in one source that is worth a warning."""

    source: str
    number: int
    total: int
    """Of how many; 0: the sentence does not say."""
    text: str
    """What is true of them, and what it means; counts with the same text become one warning."""
    unit: str = "documents"
    has_share: bool = True


def _source_warnings(sources: Sequence[SourceFacts], findings: Sequence[SourceFindings]) -> list[str]:
    """Return one warning for each thing that was found, with the first source and the sum over all."""
    counts: dict[str, list[_Count]] = {}
    for source, found in zip(sources, findings, strict=True):
        for count in _counts(source, found):
            counts.setdefault(count.text, []).append(count)
    return [_sentence(same) for same in counts.values()]


def _sentence(counts: Sequence[_Count]) -> str:
    first, num_more = counts[0], len(counts) - 1
    place = first.source
    if num_more:
        place += f" and {num_more} more source{'s' if num_more > 1 else ''}"
    number, total = sum(count.number for count in counts), sum(count.total for count in counts)
    of_total = f" of {total:,}" if total else ""
    share = f" ({number / total:.0%})" if total and first.has_share else ""
    return f"{place}: {number:,}{of_total} {first.unit}{share} {first.text}"


def _counts(source: SourceFacts, found: SourceFindings) -> Iterator[_Count]:
    spool, counts = found.spool, found.spool.counts
    good = max(1, counts.records - counts.bad_records)
    kept = max(1, len(spool.token_counts))
    if counts.duplicates > _NOTABLE_FRACTION * good:
        yield _Count(source.label, counts.duplicates, good, "are duplicates and are read once.")
    if spool.repeats > _NOTABLE_FRACTION * good:
        text = "are near-duplicates of earlier ones and are not trained on."
        yield _Count(source.label, spool.repeats, good, text)
    if counts.empty > _NOTABLE_FRACTION * good:
        yield _Count(source.label, counts.empty, good, "are empty.")
    if counts.tiny > _NOTABLE_FRACTION * kept:
        text = (
            f"have fewer than {TINY_TOKENS} tokens; join them into longer ones, so that there is something to predict"
            " from."
        )
        yield _Count(source.label, counts.tiny, kept, text)
    if found.near_duplicates > _NOTABLE_FRACTION * kept:
        text = "are near-duplicates of held-out documents and are not trained on."
        yield _Count(source.label, found.near_duplicates, kept, text)
    if found.contained > _NOTABLE_FRACTION * kept:
        text = "are short and stand in held-out documents; they are not trained on."
        yield _Count(source.label, found.contained, kept, text)
    if found.shared:
        other = "general" if source.side == "domain" else "domain"
        text = f"are {other} text too; they are trained on on both sides and held out of neither."
        yield _Count(source.label, found.shared, kept, text)
    if counts.contaminated:
        text = "contain an evaluation item and are not trained on."
        yield _Count(source.label, counts.contaminated, 0, text)
    if counts.bad_records:
        text = "are bad and were skipped."
        yield _Count(source.label, counts.bad_records, counts.records, text, "records", has_share=False)
    if source.cut_documents > _CUT_FRACTION * max(1, source.documents):
        text = "are longer than a sequence or were cut; a larger spec.corpus.sequenceLength keeps them whole."
        yield _Count(source.label, source.cut_documents, source.documents, text, has_share=False)
