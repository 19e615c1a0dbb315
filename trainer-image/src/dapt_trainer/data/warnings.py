"""Warnings by the data, with numbers: sentences for people, none of which stops a run.

Corpus sizes: under 100 M domain tokens retrieval or SFT often does as well, and LoRA forgets less; from 100 M on
continued pre-training pays (docs/training.md has the sources).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dapt_contract.held_out import MIN_TOKENS
from dapt_contract.stages.prepare import ModelFacts, SourceFacts
from dapt_trainer.data.spool import SpooledSource

_SMALL_CORPUS_TOKENS = 100_000_000
_SHARE = 0.10
_MAIN_LANGUAGE = 0.6
"""Share of a sample's documents that makes their language the source's."""
_POORLY_SPELLED = 0.6
"""Of the characters a token that general text has; below, the tokenizer fits badly."""


def warnings_of(
    model: ModelFacts,
    sources: Sequence[SourceFacts],
    spooled: Sequence[SpooledSource],
    near_duplicates: Sequence[int],
    *,
    trains_all_weights: bool,
    too_short_items: int,
) -> tuple[str, ...]:
    """All warnings, the gravest first."""
    found: list[str] = []
    if model.has_chat_template:
        found.append(
            "The base model has a chat template: continued pre-training costs an instruct model much of its chat "
            "ability; start from the base model and fine-tune afterwards where you can."
        )
    domain = sum(source.train_tokens for source in sources if source.side == "domain")
    if domain < _SMALL_CORPUS_TOKENS:
        method = " and train LoRA instead of all weights" if trains_all_weights else ""
        found.append(
            f"The domain corpus has {domain:,} training tokens; below {_SMALL_CORPUS_TOKENS:,} consider retrieval or "
            f"fine-tuning instead{method}."
        )
    for side in ("domain", "general"):
        held_out = sum(source.held_out_tokens for source in sources if source.side == side)
        if held_out < MIN_TOKENS:
            found.append(
                f"Only {held_out:,} {side} tokens are held out: its perplexity is noisy; raise "
                "spec.corpus.heldOut.fraction."
            )
    found += _languages(spooled)
    for source, spool, near in zip(sources, spooled, near_duplicates, strict=True):
        found += _of_source(source, spool, near)
    if too_short_items:
        found.append(
            f"{too_short_items} evaluation item(s) have fewer than 5 words and cannot be looked for in the corpus."
        )
    return tuple(found)


def _languages(spooled: Sequence[SpooledSource]) -> list[str]:
    """Sources in another language than their side, and sources that the tokenizer spells in small pieces."""
    found = []
    for side in ("domain", "general"):
        own = [
            (spool, main) for spool in spooled if spool.side == side and (main := spool.counts.languages.main)
        ]
        tokens: Counter[str] = Counter()
        for spool, (language, share) in own:
            if share >= _MAIN_LANGUAGE:
                tokens[language] += int(spool.token_counts.sum())
        if not tokens:
            continue
        usual = tokens.most_common(1)[0][0]
        for spool, (language, share) in own:
            if share >= _MAIN_LANGUAGE and language != usual:
                found.append(
                    f"{spool.name}: {share:.0%} of a sample of its documents are in language {language!r}, the {side} "
                    f"side is mostly in {usual!r}; check that it belongs there."
                )
    general = [spool for spool in spooled if spool.side == "general"]
    characters = sum(spool.counts.languages.characters for spool in general)
    per_token = characters / max(1, sum(spool.counts.languages.tokens for spool in general))
    for spool in spooled:
        own_per_token = spool.counts.languages.characters_per_token
        if spool.side == "domain" and 0 < own_per_token < _POORLY_SPELLED * per_token:
            found.append(
                f"{spool.name}: a token holds {own_per_token:.1f} characters, {per_token:.1f} in general text: the "
                "tokenizer knows this language or notation poorly, so training and answers take more tokens; consider "
                "a base model for it, or spec.model.tokenizer.extend."
            )
    return found


def _of_source(source: SourceFacts, spool: SpooledSource, near: int) -> list[str]:
    found = []
    counts = spool.counts
    good = max(1, counts.records - counts.bad_records)
    if counts.duplicates > _SHARE * good:
        found.append(
            f"{source.name}: {counts.duplicates:,} of {good:,} documents ({counts.duplicates / good:.0%}) were "
            "duplicates and are read once."
        )
    if spool.repeats > _SHARE * good:
        found.append(
            f"{source.name}: {spool.repeats:,} of {good:,} documents ({spool.repeats / good:.0%}) were near-duplicates "
            "of earlier ones and left the training data."
        )
    if counts.empty > _SHARE * good:
        found.append(
            f"{source.name}: {counts.empty:,} of {good:,} documents ({counts.empty / good:.0%}) are empty."
        )
    kept = max(1, len(spool.token_counts))
    if counts.tiny > _SHARE * kept:
        found.append(
            f"{source.name}: {counts.tiny:,} of {kept:,} documents ({counts.tiny / kept:.0%}) have fewer than 16 "
            "tokens; join them into longer ones, so that there is something to predict from."
        )
    if near > _SHARE * kept:
        found.append(
            f"{source.name}: {near:,} of {kept:,} documents ({near / kept:.0%}) are near-duplicates of held-out "
            "documents and left the training data."
        )
    if counts.contaminated:
        found.append(
            f"{source.name}: {counts.contaminated:,} documents contain an evaluation item and left the training data."
        )
    if counts.bad_records:
        found.append(
            f"{source.name}: {counts.bad_records:,} of {counts.records:,} records were bad and skipped."
        )
    if source.cut_documents > 0.5 * max(1, source.documents):
        found.append(
            f"{source.name}: {source.cut_documents:,} of {source.documents:,} documents are longer than a sequence or "
            "were cut; a larger spec.corpus.sequenceLength keeps them whole."
        )
    return found
