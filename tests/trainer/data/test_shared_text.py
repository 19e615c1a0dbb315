"""Text that stands in two places is never on both sides of a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import PrepareConfig, PrepareReport, TextSource
from dapt_trainer.data.packing.held_out import HALVES, read_held_out
from dapt_trainer.data.text import normalized, words
from dapt_trainer.errors import InputError
from support.toy_corpus import documents, sentences, training_texts, write_jsonl


def held_out_texts(work: Path, side: Side) -> list[str]:
    return [document.text for half in HALVES for document in read_held_out(work, side, half)]


@pytest.fixture
def prepared(config, prepare, tmp_path: Path):
    """Prepares two lists of texts; documents stay whole, so that they can be found in the shards."""

    def run(domain: list[str], general: list[str], **fields: object) -> PrepareReport:
        sources = [
            (TextSource(source=f"file://{write_jsonl(tmp_path / f'{name}.jsonl', texts)}"),)
            for name, texts in (("d", domain), ("g", general))
        ]
        changes = {"held_out_fraction": 0.2, "held_out_max_tokens": 1_000_000, "sequence_length_tokens": 256}
        changed: PrepareConfig = config.model_copy(
            update={"domain": sources[0], "general": sources[1], "global_batch_size": 1, **changes, **fields}
        )
        report: PrepareReport = prepare(changed)
        return report

    return run


@pytest.mark.parametrize(("own", "shared"), [(80, 40), (12, 100)])
def test_text_of_both_sides_is_counted_and_held_out_of_neither(
    prepared, tmp_path: Path, tokenizer, own: int, shared: int
) -> None:
    domain, general = documents(120), documents(own, first=10_000)
    report = prepared(domain, general + [f" {text}\n" for text in domain[:shared]])
    on_both = {normalized(text) for text in domain[:shared]}
    held_out = {
        side: {normalized(text) for text in held_out_texts(tmp_path / "work", side)}
        for side in ("domain", "general")
    }
    assert all(texts and not texts & on_both for texts in held_out.values())
    assert report.shared_by_source == (("domain-0", shared), ("general-0", shared))
    warnings = [warning for warning in report.facts.warnings if "text too" in warning]
    assert warnings[0] == (
        f"domain[0]: {shared} of 120 documents ({shared / 120:.0%}) are general text too; they are trained on on both "
        "sides and held out of neither."
    )
    assert len(warnings) == 2
    for side in ("domain", "general"):
        trained = {normalized(text) for text in training_texts(tmp_path / "work", tokenizer, side)}
        assert len(trained & on_both) > 0.7 * shared  # a document that was cut ends as a part


def test_sides_with_the_same_text_are_refused(prepared) -> None:
    with pytest.raises(InputError) as caught:
        prepared(documents(40), documents(40))
    assert list(caught.value.problems) == [
        f"spec.corpus.{side}: its documents stand in spec.corpus.{other} too, so that none can be held out of it to "
        "tell learning from forgetting; remove them from one of the two, or add other text"
        for side, other in (("domain", "general"), ("general", "domain"))
    ]


def test_near_copies_on_the_other_side_are_not_held_out_with_their_originals(
    prepared, tmp_path: Path
) -> None:
    domain = documents(60, words=80)
    prepared(
        domain,
        [f"{text} Printed again." for text in domain] + documents(40, first=10_000),
        held_out_fraction=0.5,
    )
    held_out = {side: held_out_texts(tmp_path / "work", side) for side in ("domain", "general")}
    originals = {text.removesuffix(" Printed again.") for text in held_out["general"]}
    assert len(originals) > 5
    assert not originals & set(held_out["domain"])


def contains(text: str, part: str) -> bool:
    return f" {' '.join(words(normalized(part)))} " in f" {' '.join(words(normalized(text)))} "


def test_short_documents_that_stand_in_held_out_text_are_not_trained_on(
    prepared, tmp_path: Path, tokenizer
) -> None:
    texts = documents(80)
    short = [" ".join(text.split()[10 : 15 + number % 6]) for number, text in enumerate(texts)]
    report = prepared(texts + short, documents(40, first=10_000))
    held_out = held_out_texts(tmp_path / "work", "domain")
    in_held_out = [part for part in short if any(contains(text, part) for text in held_out)]
    assert len(in_held_out) > 5
    trained = training_texts(tmp_path / "work", tokenizer, "domain")
    assert not [part for part in in_held_out if any(contains(text, part) for text in trained)]
    assert dict(report.contained_by_source) == {"domain-0": len(in_held_out), "general-0": 0}
    assert set(short) & set(trained)  # the others are trained on


@pytest.mark.parametrize("length", [12, 18, 30, 45])
def test_documents_that_contain_a_short_held_out_one_are_not_trained_on(
    prepared, tmp_path: Path, tokenizer, length: int
) -> None:
    short = [sentences(number, length) for number in range(60)]
    around = [f"{sentences(2000 + n, 20)} {short[n]} {sentences(3000 + n, 20)}" for n in range(60)]
    report = prepared([*short, *around], documents(40, first=10_000))
    held_out = held_out_texts(tmp_path / "work", "domain")
    short_ones = [text for text in held_out if text in short]
    assert len(short_ones) > 3
    trained = training_texts(tmp_path / "work", tokenizer, "domain")
    assert not [part for part in short_ones if any(contains(text, part) for text in trained)]
    assert len(trained) > 60
    assert dict(report.near_duplicates_by_source)["domain-0"] > 0


def test_very_short_documents_are_held_out_only_where_there_are_no_others(prepared, tmp_path: Path) -> None:
    short = [f"entry number {number}" for number in range(200)]
    prepared(short + documents(40), documents(40, first=10_000))
    assert not set(held_out_texts(tmp_path / "work", "domain")) & set(short)
    prepared(short, documents(40, first=10_000), seed=3, sequence_length_tokens=64)
    assert len(set(held_out_texts(tmp_path / "work", "domain")) & set(short)) >= 2
