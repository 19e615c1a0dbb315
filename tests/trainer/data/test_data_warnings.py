"""Warnings about the data: one for each cause, with the first source, how many more have it, and the sum."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import SourceFacts
from dapt_trainer.data.results.warnings import SourceFindings, warnings_of

MODEL: Any = SimpleNamespace(has_chat_template=False)


def source(side: Any, index: int, documents: int = 0, cut: int = 0) -> SourceFacts:
    return SourceFacts(
        side=side,
        index=index,
        documents=documents,
        train_tokens=10**9,
        sequences=10,
        held_out_tokens=10**6,
        cut_documents=cut,
    )


def found(records: int = 100, shared: int = 0, **counts: int) -> SourceFindings:
    languages = SimpleNamespace(main=None, characters=0, tokens=0, characters_per_token=0.0)
    zeros = dict.fromkeys(("bad_records", "duplicates", "empty", "tiny", "contaminated"), 0)
    spool: Any = SimpleNamespace(
        label="x",
        side="domain",
        repeats=0,
        token_counts=range(records),
        counts=SimpleNamespace(languages=languages, records=records, **(zeros | counts)),
    )
    return SourceFindings(spool=spool, near_duplicates=0, contained=0, shared=shared)


def warned(*pairs: tuple[SourceFacts, SourceFindings]) -> tuple[str, ...]:
    sources, findings = zip(*pairs, strict=True)
    return warnings_of(MODEL, sources, findings, trains_all_weights=False, too_short_items=0)


@pytest.mark.parametrize(
    ("limits", "remedy"),
    [
        ({}, "fraction"),
        ({"general": 2_000}, "fraction"),
        ({"domain": 2_000}, "maxTokens, which limits them here (2,000 a side)"),
    ],
)
def test_little_held_out_text_names_the_field_that_limits_it(limits: dict[Side, int], remedy: str) -> None:
    few = source("domain", 0).model_copy(update={"held_out_tokens": 1_900})
    warnings = warnings_of(
        MODEL,
        [few, source("general", 0)],
        [found(), found()],
        trains_all_weights=False,
        too_short_items=0,
        token_limits=limits,
    )
    assert warnings == (
        "Only 1,900 domain tokens are held out: its perplexity is noisy; raise"
        f" spec.corpus.heldOut.{remedy}.",
    )


def test_the_same_cause_in_several_sources_is_one_warning_with_the_sum() -> None:
    assert warned(
        (source("domain", 0, 13, 12), found(contaminated=1)),
        (source("domain", 1, 13, 13), found(contaminated=1)),
        (source("domain", 2, 10, 10), found()),
        (source("general", 0, 469, 454), found(contaminated=29)),
    ) == (
        "domain[0] and 2 more sources: 31 documents contain an evaluation item and are not trained on.",
        "domain[0] and 3 more sources: 489 of 505 documents are longer than a sequence or were cut; a larger"
        " spec.corpus.sequenceLength keeps them whole.",
    )


def test_sources_without_the_cause_count_neither_way() -> None:
    assert warned(
        (source("domain", 0), found()),
        (source("domain", 1), found(duplicates=30)),
        (source("general", 0), found(duplicates=50)),
        (source("general", 1), found(duplicates=1)),
    ) == ("domain[1] and 1 more source: 80 of 200 documents (40%) are duplicates and are read once.",)


def test_a_cause_of_one_source_names_it_alone() -> None:
    assert warned((source("domain", 0), found()), (source("general", 0), found(bad_records=3))) == (
        "general[0]: 3 of 100 records are bad and were skipped.",
    )


def test_text_of_both_sides_is_named_from_each_side() -> None:
    assert warned((source("domain", 0), found(shared=5)), (source("general", 0), found(shared=5))) == (
        "domain[0]: 5 of 100 documents (5%) are general text too; they are trained on on both sides and held out of"
        " neither.",
        "general[0]: 5 of 100 documents (5%) are domain text too; they are trained on on both sides and held out of"
        " neither.",
    )


def test_warning_of_a_chat_template_reaches_the_model_card_whole() -> None:
    model: Any = SimpleNamespace(has_chat_template=True)
    (first, *_) = warnings_of(model, [], [], trains_all_weights=False, too_short_items=0)
    assert first.startswith("The base model has a chat template: ")
    assert len(first) <= 160, "a message cuts longer ones, and the card has those of the message"
