"""Near-duplicates within a corpus: found at the stated similarity, the first kept, the same however it is computed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.dedup import minhash
from dapt_trainer.data.dedup.held_out_neighbours import SHINGLE_WORDS
from dapt_trainer.data.dedup.minhash import find_repeats, signatures
from dapt_trainer.data.text import WordHasher, normalized, words
from dapt_trainer.errors import InfrastructureError
from support.toy_corpus import documents, killed, write_jsonl


def signed(texts: list[str]) -> np.ndarray:
    hasher = WordHasher()
    split = [words(normalized(text)) for text in texts]
    (ngrams,) = hasher.ngrams(hasher.hashes([word for item in split for word in item]), [SHINGLE_WORDS])
    return signatures(ngrams, np.array([len(item) for item in split]))


def edited(text: str, edits: int, chooser: random.Random) -> str:
    split = text.split()
    for _ in range(edits):
        split[chooser.randrange(len(split))] = f"new{chooser.random()}"
    return " ".join(split)


def similarity(one: str, other: str) -> float:
    """Exact, of the sets of word 5-grams."""
    first, second = (
        {tuple(split[start : start + 5]) for start in range(len(split) - 4)}
        for split in (words(normalized(one)), words(normalized(other)))
    )
    return len(first & second) / len(first | second)


def test_planted_near_duplicates_are_found_by_their_similarity(tmp_path: Path) -> None:
    chooser = random.Random(3)
    originals = documents(1200, words=150)
    copies = [edited(text, chooser.randint(0, 14), chooser) for text in originals[:600]]
    (later,) = find_repeats([signed(originals + copies)], tmp_path)
    assert not later[:1200].any()  # not one of 1,200 different documents, and never the first of a pair
    exact = np.array([similarity(*pair) for pair in zip(originals, copies, strict=False)])
    is_repeat = later[1200:]
    assert (exact >= 0.8).sum() > 100
    assert is_repeat[exact >= 0.8].mean() >= 0.98
    assert is_repeat[exact >= 0.9].all()
    assert (exact < 0.55).sum() > 100
    assert not is_repeat[exact < 0.55].any()


def test_signatures_estimate_the_similarity() -> None:
    text = documents(1, words=400)[0]
    copy = edited(text, 12, random.Random(1))
    one, other = signed([text, copy])
    exact = similarity(text, copy)
    assert 0.6 < exact < 0.9
    assert (one == other).mean() == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / len(one)))


def test_a_batch_does_not_change_a_signature() -> None:
    texts = documents(5)
    assert np.array_equal(signed(texts), np.concatenate([signed([text]) for text in texts]))


def test_of_a_group_the_first_stays_wherever_the_parts_end(tmp_path: Path) -> None:
    chooser = random.Random(5)
    a, b = documents(2, words=300)
    texts = [
        edited(b, 2, chooser),
        a,
        b,
        edited(a, 2, chooser),
        edited(a, 3, chooser),
        "too short",
        "too short",
    ]
    expected = [False, False, True, True, True, False, False]
    whole = signed(texts)
    for edge in range(len(texts) + 1):
        is_repeat = find_repeats([whole[:edge], whole[edge:]], tmp_path / str(edge))
        assert np.concatenate(is_repeat).tolist() == expected


def test_other_processes_find_the_same(tmp_path: Path) -> None:
    chooser = random.Random(7)
    texts = documents(60)
    whole = signed(texts + [edited(text, 1, chooser) for text in texts[:30]])
    (here,) = find_repeats([whole], tmp_path / "here")
    (there,) = find_repeats([whole], tmp_path / "there", processes=2, inline_documents=0)
    assert np.array_equal(here, there)
    assert here.sum() == 30


def test_little_memory_finds_the_same_in_more_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = random.Random(8)
    texts = documents(60)
    whole = signed(texts + [edited(text, 1, chooser) for text in texts[:30]])
    (with_much,) = find_repeats([whole], tmp_path / "much")
    parts: list[int] = []
    near_pairs = minhash.near_pairs

    def noted(band: minhash.Band) -> minhash.Pairs:
        parts.append(band.parts)
        return near_pairs(band)

    monkeypatch.setattr(minhash, "near_pairs", noted)
    (with_little,) = find_repeats([whole], tmp_path / "little", processes=1, memory_bytes=2_000)
    assert set(parts) == {6}  # 90 documents of 128 bytes
    assert np.array_equal(with_much, with_little)
    assert with_little.sum() == 30


def test_a_killed_process_is_an_infrastructure_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "near_pairs", killed)
    with pytest.raises(InfrastructureError, match="a process that looks for near-duplicates was killed"):
        find_repeats([signed(documents(20))], tmp_path, processes=2, inline_documents=0)


def test_an_empty_corpus_has_no_repeats(tmp_path: Path) -> None:
    (is_repeat,) = find_repeats([np.empty((0, minhash.HASHES), np.uint32)], tmp_path)
    assert is_repeat.tolist() == []


def test_prepare_drops_near_duplicates_once_and_counts_them_by_source(
    config, prepare, tmp_path: Path
) -> None:
    chooser = random.Random(11)
    texts = documents(60, words=120)
    near = [edited(text, 1, chooser) for text in texts[:20]]
    first = write_jsonl(tmp_path / "1.jsonl", texts + near[:5])
    second = write_jsonl(tmp_path / "2.jsonl", near + texts[30:33] + documents(20, first=700))
    general = write_jsonl(tmp_path / "3.jsonl", documents(80, first=9000) + near[:4])
    config = config.model_copy(
        update={
            "domain": (TextSource(source=f"file://{first}"), TextSource(source=f"file://{second}")),
            "general": (TextSource(source=f"file://{general}"),),
            "deduplicate": "near",
            "held_out_fraction": 0.05,
        }
    )
    report = prepare(config)
    assert report.repeats_by_source == (("domain-0", 5), ("domain-1", 15), ("general-0", 0))
    assert report.facts.near_duplicates == 20
    assert (
        "domain[1]: 15 of 43 documents (35%) are near-duplicates of earlier ones and are not trained on."
        in report.facts.warnings
    )
    # the five that domain-0 has too are exact duplicates of dropped ones, as are the three plain copies
    assert [source.duplicates for source in report.facts.sources] == [5, 5 + 3 + 15, 0]
    dropped = dict(report.near_duplicates_by_source)
    for source, records in zip(report.facts.sources, (65, 43, 84), strict=True):
        kept = source.documents + source.held_out_documents
        assert kept + source.duplicates + dropped[source.name] == records
    assert prepare(config, work=tmp_path / "again").facts.data_digest == report.facts.data_digest
    exact = prepare(config.model_copy(update={"deduplicate": "exact"}), work=tmp_path / "exact")
    assert exact.repeats_by_source == ()
    assert exact.facts.near_duplicates == 0
    assert [source.duplicates for source in exact.facts.sources] == [0, 8, 0]


def test_languages_and_lengths_are_reported_by_source(config, prepare, tmp_path: Path) -> None:
    german = [
        f"Der Patient Nummer {n} wurde am Morgen mit Fieber und starken Schmerzen in die Klinik gebracht."
        for n in range(40)
    ]
    english = [
        f"Patient number {n} was brought to the hospital in the morning with fever and severe pain."
        for n in range(30)
    ]
    first = write_jsonl(tmp_path / "1.jsonl", german)
    second = write_jsonl(tmp_path / "2.jsonl", english)
    sources = (TextSource(source=f"file://{first}"), TextSource(source=f"file://{second}"))
    report = prepare(config.model_copy(update={"domain": sources}))
    languages = dict(report.languages_by_source)
    assert languages["domain-0"] == (("de", 40),)
    assert languages["domain-1"] == (("en", 30),)
    assert set(dict(report.lengths_by_source)) == {"domain-0", "domain-1", "general-0"}
    warnings = [sentence for sentence in report.facts.warnings if "language" in sentence]
    assert warnings[0] == (
        "domain[1]: 100% of a sample of its documents are in language 'en', the domain side is mostly in 'de'; check "
        "that it belongs there."
    )
    lengths = dict(report.lengths_by_source)["general-0"]
    assert len(lengths) == 7
    assert lengths == tuple(sorted(lengths))
    assert 61 <= lengths[0] < lengths[-1]
