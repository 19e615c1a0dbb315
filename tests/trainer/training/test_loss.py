"""Tests that the loss is the mean over the label tokens of the global batch, with documents kept apart."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import ModelReference, ScheduleConfig
from dapt_contract.stages.pretrain import PretrainReport
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.stages import pretrain
from dapt_trainer.training.arguments import scheduler_settings, warmup_steps
from dapt_trainer.training.batch_order import BatchOrder
from support.toy_training import (
    END_OF_TEXT,
    FILTERS,
    make_context,
    make_model,
    make_work_volume,
    one_rank,
    pretrain_config,
)

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
DOCUMENTS = ([5, 9, 14, 30, 31, 7, END_OF_TEXT], [100, 90, 80, END_OF_TEXT], [17, END_OF_TEXT])


def trained(work: Path, config: Any) -> PretrainReport:
    return pretrain.run(config, make_context(work, work / "scratch", config))


def test_packed_documents_have_the_loss_that_each_has_alone(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    model = load_model(tmp_path, ModelReference(weights="model"), precision="fp32").train()
    model.config.use_cache = False
    alone, tokens = 0.0, 0
    for document in DOCUMENTS:
        ids = torch.tensor([document])
        count = len(document) - 1
        alone += float(model(input_ids=ids, labels=ids).loss.item()) * count
        tokens += count
    ids = torch.tensor([[token for document in DOCUMENTS for token in document]])
    positions = torch.tensor([[place for document in DOCUMENTS for place in range(len(document))]])
    labels = ids.clone()
    labels[positions == 0] = -100
    packed = float(model(input_ids=ids, labels=labels, position_ids=positions).loss.item())
    unmasked = float(model(input_ids=ids, labels=labels).loss.item())
    assert packed == pytest.approx(alone / tokens, abs=1e-5)
    assert abs(unmasked - alone / tokens) > 1e-4


def test_accumulation_does_not_change_the_loss_although_rows_hold_different_counts(tmp_path: Path) -> None:
    curves = []
    for micro_batch_size in (8, 4, 1):
        work = make_work_volume(tmp_path / str(micro_batch_size))
        config = pretrain_config(global_batch_size=8, micro_batch_size=micro_batch_size, lora=None)
        report = trained(work, config)
        curves.append([(point.loss_nats, point.gradient_norm) for point in report.curve])
    for other in curves[1:]:
        for (loss, norm), (expected_loss, expected_norm) in zip(other, curves[0], strict=True):
            assert loss == pytest.approx(expected_loss, abs=2e-6)
            assert norm == pytest.approx(expected_norm, rel=1e-4)


def test_the_first_loss_is_the_mean_over_label_tokens_of_the_global_batch(tmp_path: Path) -> None:
    from dapt_trainer.training.training_rows import open_rows

    work = make_work_volume(tmp_path)
    config = pretrain_config(lora=None)
    rows = open_rows(work, config, one_rank())
    model = load_model(work, config.model, precision="fp32").train()
    model.config.use_cache = False
    total, tokens = 0.0, 0
    for index in range(config.global_batch_size):
        row = {name: value[None] for name, value in rows.dataset[index].items()}
        count = int((row["labels"][:, 1:] != -100).sum())
        total += float(model(**row).loss.item()) * count
        tokens += count
    report = trained(work, config)
    assert report.curve[0].loss_nats == pytest.approx(total / tokens, abs=1e-5)
    assert report.curve[0].tokens == rows.tokens_of_step(0)
    assert sum(dict(report.tokens_by_source).values()) == report.facts.tokens


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_world_size_reads_the_same_rows_in_each_step(world_size: int) -> None:
    orders = [list(BatchOrder(3, 8, 2, rank, world_size, first_step=1)) for rank in range(world_size)]
    accumulation = 8 // (2 * world_size)
    for step in (0, 1):
        rows = sorted(
            row
            for order in orders
            for micro in order[step * accumulation : (step + 1) * accumulation]
            for row in micro
        )
        assert rows == list(range(8 * (step + 1), 8 * (step + 2)))


def test_the_rate_warms_up_linearly_and_ends_at_its_minimum(tmp_path: Path) -> None:
    config = pretrain_config(
        total_steps=12,
        checkpoint_steps=(12,),
        schedule=ScheduleConfig(warmup_fraction=0.25, minimum_ratio=0.1),
    )
    rates = [point.learning_rate for point in trained(make_work_volume(tmp_path), config).curve]
    assert rates[:3] == pytest.approx([5e-3 / 3, 1e-2 / 3, 5e-3])
    assert rates[-1] == pytest.approx(5e-4)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[2:]))


def test_wsd_holds_its_rate_and_decays_over_the_last_fifth(tmp_path: Path) -> None:
    config = pretrain_config(
        total_steps=10,
        checkpoint_steps=(10,),
        schedule=ScheduleConfig(type="wsd", warmup_fraction=0.0, minimum_ratio=0.1),
    )
    rates = [point.learning_rate for point in trained(make_work_volume(tmp_path), config).curve]
    assert rates[:8] == pytest.approx([5e-3] * 8)
    assert rates[8:] == pytest.approx([5e-3 * 0.55, 5e-3 * 0.1])


def test_a_short_run_has_no_warm_up_at_one_percent() -> None:
    assert warmup_steps(ScheduleConfig(), 99) == 0
    assert warmup_steps(ScheduleConfig(), 250) == 2
    assert scheduler_settings(ScheduleConfig(), 99)["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}


def test_norms_are_not_decayed(tmp_path: Path) -> None:
    from transformers import Trainer

    make_model(tmp_path / "model")
    model = load_model(tmp_path, ModelReference(weights="model"), precision="fp32")
    decayed = Trainer.get_decay_parameter_names(Trainer.__new__(Trainer), model)
    assert decayed
    assert not [name for name in decayed if "norm" in name]
