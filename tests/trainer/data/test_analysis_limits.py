"""Tests that no text of a corpus keeps prepare busy for ever: the text is named, in bounded time."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from dapt_contract.stages.prepare import TextSource
from dapt_trainer.data.analysis import (
    AnalysedBatch,
    AnalysisPool,
    AnalysisSettings,
    SlowTextError,
)
from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.reading.sources import resolve
from dapt_trainer.data.reading.text_batches import RecordRules, TextBatches
from dapt_trainer.data.slices.cut import CorpusSource, slices_of
from dapt_trainer.data.slices.read_slice import ReadingRules, SliceReader
from dapt_trainer.data.text import normalized
from dapt_trainer.errors import InputError
from dapt_trainer.limited_time import limit_seconds
from support.toy_corpus import train_tokenizer

SLOW = "a" * 32_000
"""The pattern below reads on to the end of the text from each of its letters."""


@pytest.fixture(scope="module")
def settings() -> AnalysisSettings:
    tokenizer = train_tokenizer(["water stone"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return AnalysisSettings(tokenizer.to_str(), None, 0, ContaminationIndex())


@pytest.mark.parametrize("inline_characters", [10**6, 0])
def test_text_that_takes_too_long_is_found_in_its_batch(
    settings: AnalysisSettings, inline_characters: int
) -> None:
    pool = AnalysisPool(
        settings,
        processes=2,
        inline_characters=inline_characters,
        limit=lambda characters: 1 + characters // 10**6,
    )
    with pool, pytest.raises(SlowTextError) as caught:
        list(pool.analysed([["water"], ["stone", "water", SLOW, "stone"], ["water"]]))
    assert (caught.value.batch, caught.value.text, caught.value.seconds) in ((0, 2, 1), (1, 2, 1))


def test_text_that_takes_too_long_is_named_by_file_and_line(
    tmp_path: Path, settings: AnalysisSettings
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("water", "", "stone", "bridge")))
    config = TextSource(source=f"file://{path}")
    rules = ReadingRules(0, True, 0.1, 0.0, "uint16", 1, ())
    pool = _SlowPool(settings)
    (whole,) = slices_of(CorpusSource("domain", 0, config, resolve(config.source, "source")))
    with pytest.raises(InputError) as caught:
        SliceReader(rules, pool).read(whole, tmp_path / "slice")
    assert str(caught.value) == (
        f"spec.corpus.domain[0]: {path}:3: analysing this text takes more than 90 seconds of processor time, most "
        "likely in the model's tokenizer; remove the text, or use a model with another tokenizer"
    )


class _SlowPool(AnalysisPool):
    """Finds the third text of the first batch too slow."""

    def analysed(self, batches: Iterable[Sequence[str]]) -> Iterator[AnalysedBatch]:
        next(iter(batches))
        raise SlowTextError(0, 2, limit_seconds(1_000_000))
        yield


def test_batches_keep_the_place_of_each_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    config = TextSource(source=f"file://{tmp_path}/a.jsonl")
    found = TextBatches("f", config, resolve(config.source, "f"), RecordRules(0.0, 0), Problems())
    assert [batch.locations for batch in found] == [[f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]]


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f73\u0301", "\uff9e\u0316", "\u0308\u0301"])
@pytest.mark.parametrize("count", [3, 16, 40])
def test_marks_in_a_row_are_ordered_as_normalization_orders_them(marks: str, count: int) -> None:
    text = f"É か{marks * count} a{marks * count}b"
    assert normalized(text) == " ".join(unicodedata.normalize("NFKC", text).lower().split())


def test_document_of_marks_alone_is_normalized_in_linear_time() -> None:
    # In the order of its classes the library reads it once; in this one it would take a quarter of an hour.
    assert len(normalized("a" + "\u0301\u0316" * 100_000)) == 200_000
