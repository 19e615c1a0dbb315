"""The whole stage on tiny corpora: what it leaves, counts, and leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dapt_contract.measure import Side
from dapt_contract.stages.common import ProbeConfig, TaskConfig
from dapt_contract.stages.prepare import TextSource, TrainingLength
from dapt_trainer.data import analysis
from dapt_trainer.data.choose_held_out import held_out_limit
from dapt_trainer.data.packing.data_manifest import read_manifest
from dapt_trainer.data.packing.held_out import HALVES, read_held_out
from dapt_trainer.data.packing.recorded_data import require_recorded_data
from dapt_trainer.data.packing.shards import open_shards
from dapt_trainer.digests import weights_digest
from dapt_trainer.errors import InfrastructureError, StopRequested
from support.toy_corpus import documents, killed, training_texts, write_jsonl, write_model


def held_out_texts(work: Path, side: Side) -> list[str]:
    return [document.text for half in HALVES for document in read_held_out(work, side, half)]


def test_every_document_is_trained_on_or_held_out(config, prepare, tmp_path: Path, tokenizer) -> None:
    facts = prepare(config.model_copy(update={"sequence_length_tokens": 256})).facts
    work = tmp_path / "work"
    texts_of_sides: dict[Side, list[str]] = {
        "domain": documents(120),
        "general": documents(80, first=10_000),
    }
    for side, texts in texts_of_sides.items():
        held_out = held_out_texts(work, side)
        trained = training_texts(work, tokenizer, side)
        assert set(held_out) <= set(texts)
        assert not set(held_out) & set(trained)
        whole = set(trained) & set(texts)  # a document that was cut ends as a part
        (source,) = (source for source in facts.sources if source.side == side)
        assert len(whole) >= source.documents - source.cut_documents
        assert source.documents + source.held_out_documents == len(texts)
        for half in HALVES:
            for document in read_held_out(work, side, half):
                assert document.ids == tokenizer.encode(document.text).ids
                assert document.bytes == len(document.text.encode())
    assert facts.domain_tokens == sum(
        shard.tokens for shard in read_manifest(work).shards if shard.side == "domain"
    )
    assert all(source.fill_fraction >= 0.995 for source in facts.sources)
    assert sum(text.endswith("raise spec.corpus.heldOut.fraction.") for text in facts.warnings) == 2


def test_duplicates_are_read_once_and_never_in_both_splits(
    config, prepare, tmp_path: Path, tokenizer
) -> None:
    texts = documents(60)
    first = write_jsonl(tmp_path / "1.jsonl", texts + [text.upper() for text in texts[:20]])
    second = write_jsonl(
        tmp_path / "2.jsonl", [f"  {text}\n" for text in texts[10:30]] + documents(30, first=500)
    )
    config = config.model_copy(
        update={
            "domain": (TextSource(source=f"file://{first}"), TextSource(source=f"file://{second}")),
            "held_out_fraction": 0.2,
        }
    )
    facts = prepare(config).facts
    assert [source.duplicates for source in facts.sources] == [20, 20, 0]
    held_out = {text.lower().strip() for text in held_out_texts(tmp_path / "work", "domain")}
    assert len(held_out) > 5
    trained = {text.lower().strip() for text in training_texts(tmp_path / "work", tokenizer, "domain")}
    assert not held_out & trained


def test_without_deduplication_copies_stay_but_never_those_of_held_out_text(
    config, prepare, tmp_path, tokenizer
) -> None:
    texts = documents(60)
    path = write_jsonl(tmp_path / "1.jsonl", texts * 2)
    config = config.model_copy(
        update={
            "domain": (TextSource(source=f"file://{path}"),),
            "held_out_fraction": 0.2,
            "deduplicate": "none",
            "sequence_length_tokens": 256,
        }
    )
    report = prepare(config)
    domain = report.facts.sources[0]
    assert domain.duplicates == 0
    assert domain.documents == 120 - 2 * domain.held_out_documents
    assert not set(held_out_texts(tmp_path / "work", "domain")) & set(
        training_texts(tmp_path / "work", tokenizer, "domain")
    )


def test_near_copies_of_held_out_text_leave_the_training_data_of_both_sides(
    config, prepare, tmp_path
) -> None:
    """Every document has a copy with two words changed on the other side: what one side holds out, the other drops."""
    texts = documents(100, words=100)
    split = [text.split() for text in texts]
    copies = [" ".join([*words[:20], "changed", *words[21:60], "too", *words[61:]]) for words in split]
    domain = write_jsonl(tmp_path / "1.jsonl", texts)
    general = write_jsonl(tmp_path / "2.jsonl", copies)
    report = prepare(
        config.model_copy(
            update={
                "domain": (TextSource(source=f"file://{domain}"),),
                "general": (TextSource(source=f"file://{general}"),),
                "held_out_fraction": 0.1,
            }
        )
    )
    held_out = [source.held_out_documents for source in report.facts.sources]
    assert min(held_out) >= 2
    near = dict(report.near_duplicates_by_source)
    assert near["domain-0"] + near["general-0"] >= 0.9 * sum(held_out) - 2
    assert report.facts.sources[0].documents == 100 - held_out[0] - near["domain-0"]


def test_held_out_text_keeps_to_its_bound_and_has_two_halves(config, prepare, tmp_path: Path) -> None:
    facts = prepare(config.model_copy(update={"held_out_fraction": 0.5, "held_out_max_tokens": 600})).facts
    work = tmp_path / "work"
    for side in ("domain", "general"):
        tokens = [sum(len(d.ids) for d in read_held_out(work, side, half)) for half in HALVES]
        assert all(200 <= count <= 300 for count in tokens)
        assert sum(source.held_out_tokens for source in facts.sources if source.side == side) == sum(tokens)


def test_a_short_training_holds_out_what_its_readings_may_cost() -> None:
    ten = {"checkpoints": 10}
    of_tokens = held_out_limit(TrainingLength(tokens=100_000_000, **ten), 1, 1)
    assert of_tokens == 300_000  # 10 checkpoints x 2 sides x 300,000 / 3 is 2 % of the training
    assert held_out_limit(TrainingLength(steps=1000, **ten), 1, 100_000) == of_tokens
    assert held_out_limit(TrainingLength(epochs=4.0, **ten), 25_000_000, 1) == of_tokens
    assert held_out_limit(TrainingLength(tokens=100_000_000, checkpoints=1), 1, 1) == 1_000_000
    assert (
        held_out_limit(TrainingLength(steps=3, **ten), 1, 1_000_000) == 30_000
    )  # a step a checkpoint, three in all
    assert held_out_limit(TrainingLength(tokens=10_000, **ten), 1, 1) == 2_000


def test_without_a_bound_the_length_of_the_training_gives_it(config, prepare, tmp_path: Path) -> None:
    changes = {"held_out_fraction": 0.5, "training": TrainingLength(tokens=1, checkpoints=1)}
    facts = prepare(config.model_copy(update=changes)).facts
    remedy = "raise spec.corpus.heldOut.maxTokens, which limits them here (2,000 a side)."
    assert sum(warning.endswith(remedy) for warning in facts.warnings) == 2
    for side in ("domain", "general"):
        tokens = [sum(len(d.ids) for d in read_held_out(tmp_path / "work", side, half)) for half in HALVES]
        assert all(800 <= count <= 1000 for count in tokens)


def test_a_document_longer_than_the_bound_gives_its_beginning(config, prepare, tmp_path: Path) -> None:
    prepare(config.model_copy(update={"held_out_max_tokens": 40}))
    for half in HALVES:
        (document,) = read_held_out(tmp_path / "work", "domain", half)
        assert len(document.ids) == 20
        assert any(text.startswith(document.text) for text in documents(120))


def test_a_source_is_read_up_to_its_tokens(config, prepare, tmp_path: Path) -> None:
    source = config.domain[0].model_copy(update={"max_tokens": 3000})
    facts = prepare(config.model_copy(update={"domain": (source,)})).facts
    kept = facts.sources[0].train_tokens + facts.sources[0].held_out_tokens
    assert 3000 - 10 <= kept < 3000 + 200  # held-out tokens count without end-of-text


def test_training_documents_with_evaluation_items_are_dropped_and_counted_by_task(
    config, prepare, tmp_path, tokenizer
) -> None:
    texts = documents(120)
    planted = [
        *texts[:3],
        f"{texts[3]} What is the funny bone? A nerve.",
        f"The sky is blue today. {texts[4]}",
        *texts[5:],
    ]
    domain = write_jsonl(tmp_path / "d.jsonl", planted)
    task = tmp_path / "bones.jsonl"
    task.write_text(
        '{"question": "What is the funny bone?", "choices": ["a bone", "a nerve"], "answer": "a nerve"}\n'
    )
    probe = tmp_path / "sky.jsonl"
    probe.write_text('{"prompt": "The sky is", "choices": ["green", "blue today"], "answer": 1}\n')
    config = config.model_copy(
        update={
            "domain": (TextSource(source=f"file://{domain}"),),
            "tasks": (TaskConfig(name="bones", side="domain", source=f"file://{task}"),),
            "probes": (ProbeConfig(name="sky", side="general", source=f"file://{probe}"),),
        }
    )
    report = prepare(config)
    assert report.contamination_by_task == (("bones", 1), ("sky", 1))
    assert report.facts.sources[0].contaminated == 2
    assert report.facts.task_items == (("bones", 1), ("sky", 1))
    work = tmp_path / "work"
    assert json.loads((work / "tasks/bones.jsonl").read_text())["answer"] == 1
    assert json.loads((work / "probes/sky.jsonl").read_text())["prompt"] == "The sky is"
    assert (
        "domain[0]: 2 documents contain an evaluation item and are not trained on." in report.facts.warnings
    )
    kept = prepare(config.model_copy(update={"decontaminate": False}), work=tmp_path / "other")
    assert kept.facts.sources[0].contaminated == 0


def test_bad_records_are_skipped_up_to_the_share_that_is_allowed(config, prepare, tmp_path: Path) -> None:
    path = Path(config.domain[0].source.removeprefix("file://"))
    path.write_text(path.read_text() + "broken\n\n")
    facts = prepare(config.model_copy(update={"bad_records_max_fraction": 0.01})).facts
    assert facts.sources[0].bad_records == 1
    assert "domain[0]: 1 of 121 records are bad and were skipped." in facts.warnings


def test_the_number_of_processes_does_not_change_the_data(config, prepare, tmp_path, monkeypatch) -> None:
    """Two processes that get all batches, against this one."""
    domain = write_jsonl(tmp_path / "large.jsonl", documents(2500, words=25))
    config = config.model_copy(update={"domain": (TextSource(source=f"file://{domain}", max_tokens=60_000),)})
    alone = prepare(config, work=tmp_path / "one").facts
    monkeypatch.setattr(analysis, "BATCH_DOCUMENTS", 300)
    monkeypatch.setattr("dapt_trainer.data.reading.text_batches.BATCH_DOCUMENTS", 300)
    init = analysis.AnalysisPool.__init__
    monkeypatch.setattr(
        analysis.AnalysisPool,
        "__init__",
        lambda pool, settings, beat: init(pool, settings, processes=2, inline_characters=0, beat=beat),
    )
    spread = prepare(config, work=tmp_path / "two").facts
    assert spread == alone


def test_a_killed_helper_ends_the_stage_instead_of_hanging_it(config, prepare, monkeypatch) -> None:
    init = analysis.AnalysisPool.__init__
    monkeypatch.setattr(
        analysis.AnalysisPool,
        "__init__",
        lambda pool, settings, beat: init(pool, settings, processes=2, inline_characters=0, beat=beat),
    )
    monkeypatch.setattr(analysis, "analyse", killed)
    with pytest.raises(InfrastructureError) as caught:
        prepare(config)
    assert str(caught.value) == (
        "a process that tokenizes was killed, most likely for memory; give prepare more memory or fewer cores"
    )


def test_another_seed_holds_out_other_documents(config, prepare, tmp_path: Path) -> None:
    one = prepare(config, work=tmp_path / "one").facts
    two = prepare(config.model_copy(update={"seed": 8}), work=tmp_path / "two").facts
    assert one.data_digest != two.data_digest
    # What stages compare: it follows from the manifest's own list, and names the model as they do.
    require_recorded_data(tmp_path / "one", one.data_digest)
    assert one.model.digest == f"sha256:{weights_digest(tmp_path / 'one/model')}"
    assert set(held_out_texts(tmp_path / "one", "domain")) != set(held_out_texts(tmp_path / "two", "domain"))


def test_a_tokenizer_that_begins_texts_begins_every_document(
    config, prepare, tmp_path: Path, model: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|begin|>"])
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    write_model(model, tokenizer)
    prepare(config)
    work = tmp_path / "work"
    assert read_manifest(work).begin_of_text_id == begin
    packed = open_shards(work)[0].sequence(0)
    assert packed.input_ids[0] == begin
    assert begin not in read_held_out(work, "domain", "a")[0].ids


def test_text_that_spells_end_of_text_does_not_end(config, prepare, tmp_path: Path, tokenizer) -> None:
    texts = [f"{text} <|end|> and on" for text in documents(100)]
    domain = write_jsonl(tmp_path / "d.jsonl", texts)
    prepare(config.model_copy(update={"domain": (TextSource(source=f"file://{domain}"),)}))
    end = read_manifest(tmp_path / "work").end_of_text_id
    shard = open_shards(tmp_path / "work")[0]
    ends = int((np.asarray(shard.tokens) == end).sum())
    assert ends <= 100


def test_progress_rises_and_names_the_activity(config, prepare, board) -> None:
    prepare(config)
    assert board.fractions == sorted(board.fractions)
    assert "tokenizing domain[0]" in board.activities
    assert "packing general[0]" in board.activities


def test_a_stop_is_heeded(config, prepare, board) -> None:
    board.stop = True
    with pytest.raises(StopRequested):
        prepare(config)
