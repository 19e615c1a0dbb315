"""Tests finetune: labels on responses only, a repeatable result, a reference to the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dapt_contract.stages.common import (
    DistributionConfig,
    LoraConfig,
    ModelReference,
    OptimizerConfig,
    ScheduleConfig,
)
from dapt_contract.stages.finetune import FinetuneConfig, FinetuneReport
from dapt_contract.stages.tuning_data import SHOWN_DIGITS
from dapt_trainer.checkpoints.run_checkpoints import RunCheckpoints
from dapt_trainer.data.chat.tokens import Example
from dapt_trainer.digests import sha256_of_file, weights_digest
from dapt_trainer.errors import InputError
from dapt_trainer.stages import finetune
from dapt_trainer.training.tuning import tuning_run
from dapt_trainer.training.tuning.instruction_rows import PackedExamples, tokenize_all
from support.toy_training import (
    FILTERS,
    SEQUENCE_LENGTH,
    make_context,
    make_tokenizer,
    make_work_volume,
)
from support.tuning_texts import write_instructions, write_plain
from support.written import load_recipe

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]


def config(**changes: Any) -> FinetuneConfig:
    defaults: dict[str, Any] = {
        "model": ModelReference(weights="model"),
        "lora": LoraConfig(rank=4, alpha=8),
        "epochs": 2.0,
        "sequence_length_tokens": 128,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "schedule": ScheduleConfig(),
        "distribution": DistributionConfig(zero_stage=2, precision="fp32"),
    }
    return FinetuneConfig(**(defaults | changes))


def tuned(work: Path, settings: FinetuneConfig, **options: Any) -> FinetuneReport:
    return finetune.run(settings, make_context(work, work / "scratch", settings, kind="finetune", **options))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    make_work_volume(tmp_path)
    write_instructions(tmp_path, [(f"what is {number}", f"it is {number * 2}") for number in range(10)])
    return tmp_path


def packed(work: Path, **changes: Any) -> tuple[list[Example], PackedExamples]:
    examples = tokenize_all(make_tokenizer(), work / "instructions", sequence_length_tokens=128).kept
    settings: dict[str, Any] = {
        "sequence_length_tokens": 128,
        "minimum_rows": 2,
        "seed": 1,
        "padding_id": 0,
    }
    return list(examples), PackedExamples(examples, **(settings | changes))


def test_a_response_past_the_sequence_length_is_cut_or_dropped_and_counted(
    work: Path,
) -> None:
    tokenizer, folder = make_tokenizer(), work / "instructions"
    write_instructions(
        work, [("short?", "yes"), ("short?", "y" * 40), ("a question of many letters? " * 2, "no")]
    )
    examples = tokenize_all(tokenizer, folder, sequence_length_tokens=SEQUENCE_LENGTH)
    assert [len(example.labels) for example in examples.kept] == [29, SEQUENCE_LENGTH]
    assert (examples.cut, examples.dropped) == (1, 1)
    with pytest.raises(InputError) as caught:
        tokenize_all(tokenizer, folder, sequence_length_tokens=8)
    assert str(caught.value) == (
        "none of 3 conversations has a response within 8 tokens; raise finetuning.sequenceLength or shorten the prompts"
    )


def test_plain_examples_need_no_template(work: Path) -> None:
    write_plain(work, [("ab", "cd")])
    tokenizer = make_tokenizer(chat_template=True)
    (example,) = tokenize_all(tokenizer, work / "instructions", sequence_length_tokens=128).kept
    assert tokenizer.decode(example.input_ids) == "abcd<|end|>"
    assert list(example.labels) == [-100, -100, *example.input_ids[2:]]
    bare = make_tokenizer()
    tokenize_all(bare, work / "instructions", sequence_length_tokens=128)
    assert not bare.chat_template


def test_examples_are_read_from_the_folder_that_the_configuration_names(work: Path) -> None:
    (work / "instructions").rename(work / "prepared")
    settings = config(epochs=None, total_steps=1, data_folder="prepared")
    assert tuned(work, settings).facts.examples == 10
    with pytest.raises(InputError) as caught:
        tuned(work, config(), try_number=2)
    assert str(caught.value) == (f"{work}/instructions/train.jsonl: no tuning data there; run prepare again")


def test_examples_that_changed_since_they_were_prepared_are_not_learned_from(work: Path) -> None:
    path = work / "instructions/train.jsonl"
    settings = config(data_digest=sha256_of_file(path)[:SHOWN_DIGITS])
    path.write_text(path.read_text().rpartition("{")[0])
    with pytest.raises(InputError, match=f"{path}: has the SHA-256 .* was written there"):
        tuned(work, settings)


def test_each_epoch_reads_every_conversation_once_in_a_new_order(work: Path) -> None:
    examples, rows = packed(work)
    again = packed(work)[1]
    epochs = [[rows.members(k) for k in range(start, start + rows.rows)] for start in (0, rows.rows)]
    assert [sorted(number for row in epoch for number in row) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] == [again.members(k) for k in range(rows.rows)]
    for k in range(rows.rows):
        row = rows[k]
        together = [token for number in rows.members(k) for token in examples[number].input_ids]
        assert row["input_ids"][: rows.tokens(k)].tolist() == together
        positions = [place for number in rows.members(k) for place in range(len(examples[number].input_ids))]
        assert row["position_ids"][: rows.tokens(k)].tolist() == positions
        assert set(row["labels"][rows.tokens(k) :].tolist()) <= {-100}


def test_at_least_95_percent_of_a_row_is_filled() -> None:
    generator = np.random.default_rng(0)
    examples = [
        Example([1] * length, [1] * length) for length in generator.integers(20, 900, size=400).tolist()
    ]
    rows = PackedExamples(examples, sequence_length_tokens=1024, minimum_rows=8, seed=0, padding_id=0)
    assert rows.fill_fraction >= 0.95
    assert rows.row_length == 1024
    assert max(rows.tokens(k) for k in range(rows.rows)) <= 1024


def test_little_data_is_spread_over_the_rows_that_are_asked_for(work: Path) -> None:
    wide = packed(work, minimum_rows=4)[1]
    assert (wide.rows, wide.row_length) == (4, 112)
    wider = packed(work, minimum_rows=64)[1]
    assert (wider.rows, wider.row_length) == (10, 40)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_the_loss_of_packed_rows_is_the_mean_over_single_conversations(
    work: Path, micro_batch_size: int
) -> None:
    import torch

    settings = config(lora=None, micro_batch_size=micro_batch_size, total_steps=1, epochs=None)
    examples, rows = packed(work, minimum_rows=4, seed=0)
    model = load_recipe(work, settings.model, precision="fp32")
    total, tokens = 0.0, 0
    for number in (member for row in range(4) for member in rows.members(row)):
        ids, labels = (
            torch.tensor([list(part)]) for part in (examples[number].input_ids, examples[number].labels)
        )
        total += float(model(input_ids=ids, labels=labels).loss.item()) * examples[number].response_tokens
        tokens += examples[number].response_tokens
    found = tuned(work, settings, try_number=micro_batch_size).facts
    assert found.first_loss_nats == pytest.approx(total / tokens, abs=1e-5)
    assert (found.rows, found.examples, found.response_tokens) == (4, 10, tokens)


def test_lora_adds_an_adapter_and_a_repeated_run_has_the_same_weights(work: Path) -> None:
    first = tuned(work, config())
    again = tuned(work, config(), try_number=2)
    assert first.facts.model == ModelReference(weights="model", tuned=("stages/finetune-a1/try-1/model",))
    assert first.facts.weights_digest == again.facts.weights_digest
    assert first.facts.weights_digest == weights_digest(work / "stages/finetune-a1/try-1/model")
    assert (first.facts.steps, first.facts.examples) == (2, 10)
    assert first.facts.last_loss_nats < first.facts.first_loss_nats


def test_full_weights_give_a_model_folder(work: Path) -> None:
    report = tuned(work, config(lora=None, epochs=None, total_steps=2))
    assert report.facts.model == ModelReference(weights="stages/finetune-a1/try-1/model")
    assert report.facts.steps == 2
    load_recipe(work, report.facts.model, precision="bf16")


def test_a_save_by_the_clock_is_resumed_from_and_removed_at_the_end(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_run, "SAVE_EVERY_SECONDS", 0.0)
    settings = config(epochs=None, total_steps=3)
    whole = tuned(work, settings)
    assert [path.name for path in (work / "stages" / "finetune-a1" / "try-1").glob("checkpoint*")] == []
    saved: list[int] = []
    real = RunCheckpoints.begin_save

    def save_and_die(checkpoints: RunCheckpoints, step: int, *rest: Any, **named: Any) -> None:
        real(checkpoints, step, *rest, **named)
        checkpoints.finish_save()
        saved.append(step)
        if step == 2:
            raise RuntimeError("killed")

    monkeypatch.setattr(RunCheckpoints, "begin_save", save_and_die)
    with pytest.raises(RuntimeError, match="killed"):
        tuned(work, settings, try_number=2)
    again = tuned(work, settings, try_number=3)
    assert saved == [1, 2]
    assert again.facts.weights_digest == whole.facts.weights_digest
    assert [point.loss_nats for point in again.curve] == [point.loss_nats for point in whole.curve]
    assert list((work / "stages" / "finetune-a1").glob("try-*/checkpoint*")) == []
