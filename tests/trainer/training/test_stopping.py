"""Tests how pretraining ends early: forgetting, divergence, a stop request, the time limit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig
from dapt_contract.stages.pretrain import PretrainFacts, PretrainReport
from dapt_contract.stop_rule import StopRule
from dapt_trainer.context import SilentProgress
from dapt_trainer.errors import DivergedError, ForgettingLimitReached, InputError, StopRequested
from dapt_trainer.stages import pretrain
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]


class StopsAfter(SilentProgress):
    """SIGTERM arrives while step `step` is shown."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.asked = False

    def update(self, **fields: Any) -> None:
        self.asked |= fields.get("step") == self.step

    def stop_requested(self) -> bool:
        return self.asked


def poison(monkeypatch: Any, steps: set[int]) -> None:
    """Make the loss of these steps, counted from 1, no number."""
    from dapt_trainer.training.step_trainer import StepTrainer

    honest = StepTrainer.compute_loss

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = honest(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step + 1 in steps else loss

    monkeypatch.setattr(StepTrainer, "compute_loss", poisoned)


def trained(work: Path, config: Any, **options: Any) -> PretrainReport:
    return pretrain.run(config, make_context(work, work / "scratch", config, **options))


def test_the_stop_rule_ends_the_run_and_reports_its_checkpoints(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    rule = StopRule(max_increase_fraction=0.1, patience=2, hard_stop_factor=1e6)
    config = pretrain_config(stop_rule=rule, base_general_perplexity=100.0)
    with pytest.raises(ForgettingLimitReached) as caught:
        trained(work, config)
    facts = caught.value.facts
    assert isinstance(facts, PretrainFacts)
    assert (facts.ended_by, facts.steps) == ("ForgettingLimit", 4)
    assert [row.step for row in facts.checkpoints] == [2, 4]
    assert str(caught.value).startswith("pretraining stopped at step 4 of 6: general perplexity is +")
    assert str(caught.value).endswith(
        "above +20.0%, twice the limit, at 2 checkpoints in a row and not falling"
    )
    assert isinstance(caught.value.report, PretrainReport)
    assert len(caught.value.report.curve) == 4


def test_a_stop_whose_report_was_lost_is_reported_again_without_training(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    rule = StopRule(max_increase_fraction=0.1, patience=2, hard_stop_factor=1e6)
    config = pretrain_config(stop_rule=rule, base_general_perplexity=100.0)
    with pytest.raises(ForgettingLimitReached) as first:
        trained(work, config)
    with pytest.raises(ForgettingLimitReached) as again:
        trained(work, config, try_number=2)
    assert str(again.value) == str(first.value)
    assert isinstance(again.value.facts, PretrainFacts)
    assert [row.try_number for row in again.value.facts.checkpoints] == [1, 1]
    assert again.value.facts.steps == 4


def test_the_hard_stop_ends_the_run_at_the_first_checkpoint(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    rule = StopRule(max_increase_fraction=0.1, patience=2, hard_stop_factor=2.0)
    with pytest.raises(ForgettingLimitReached, match=r"past the hard stop of \+20.0% \(2 times"):
        trained(work, pretrain_config(stop_rule=rule, base_general_perplexity=100.0))


def test_a_loss_that_stays_no_number_ends_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    poison(monkeypatch, {3, 4, 5, 6})
    with pytest.raises(DivergedError) as caught:
        trained(make_work_volume(tmp_path), pretrain_config())
    assert str(caught.value) == (
        "pretraining stopped at step 5 of 6: 3 steps in a row had a loss or gradient that is not a number; lower "
        "pretraining.optimizer.learningRate"
    )
    facts = caught.value.facts
    assert isinstance(facts, PretrainFacts)
    assert (facts.ended_by, facts.skipped_steps) == ("Diverged", 3)
    assert [row.step for row in facts.checkpoints] == [2, 4]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "bf16")]
)
def test_a_step_that_is_not_finite_changes_no_weight_and_the_schedule_continues(
    tmp_path: Path, monkeypatch: Any, zero_stage: Any, precision: Any, lora: bool
) -> None:
    poison(monkeypatch, {1, 4})
    config = pretrain_config(
        checkpoint_steps=(3, 4, 6),
        distribution=DistributionConfig(zero_stage=zero_stage, precision=precision),
        **({} if lora else {"lora": None}),
    )
    report = trained(make_work_volume(tmp_path), config)
    assert [point.step for point in report.curve if point.skipped] == [1, 4]
    assert (report.facts.ended_by, report.facts.skipped_steps) == ("Completed", 2)
    before, skipped, after = report.facts.checkpoints
    assert skipped.weights_digest == before.weights_digest != after.weights_digest
    assert all(math.isfinite(value) for value in (after.domain_a_nats, after.general_b_nats))
    assert report.curve[-1].learning_rate == pytest.approx(5e-4)


def test_a_run_resumes_exactly_after_a_skipped_step(tmp_path: Path, monkeypatch: Any) -> None:
    poison(monkeypatch, {3})
    unbroken = trained(make_work_volume(tmp_path / "a"), pretrain_config())
    work = make_work_volume(tmp_path / "b")
    with pytest.raises(StopRequested):
        trained(work, pretrain_config(), progress=StopsAfter(3))
    resumed = trained(work, pretrain_config(), try_number=2)
    assert repr([(p.loss_nats, p.gradient_norm, p.learning_rate, p.skipped) for p in resumed.curve]) == repr(
        [(p.loss_nats, p.gradient_norm, p.learning_rate, p.skipped) for p in unbroken.curve]
    )
    assert resumed.facts.skipped_steps == 1
    assert resumed.facts.checkpoints[-1].weights_digest == unbroken.facts.checkpoints[-1].weights_digest


def test_a_stop_request_saves_at_the_next_step_and_the_next_run_continues_there(tmp_path: Path) -> None:
    unbroken = trained(make_work_volume(tmp_path / "a"), pretrain_config())
    work = make_work_volume(tmp_path / "b")
    with pytest.raises(StopRequested, match="stop requested at step 3 of 6; its checkpoint is complete"):
        trained(work, pretrain_config(), progress=StopsAfter(2))
    resumed = trained(work, pretrain_config(), try_number=2)
    assert [point.loss_nats for point in resumed.curve] == [point.loss_nats for point in unbroken.curve]
    assert [row.step for row in resumed.facts.checkpoints] == [2, 4, 6]


def test_a_stop_at_a_checkpoint_step_leaves_its_reading_to_the_next_run(tmp_path: Path) -> None:
    unbroken = trained(make_work_volume(tmp_path / "a"), pretrain_config())
    work = make_work_volume(tmp_path / "b")
    with pytest.raises(StopRequested, match="at step 6 of 6"):
        trained(work, pretrain_config(), progress=StopsAfter(5))
    resumed = trained(work, pretrain_config(), try_number=2)
    assert [row.step for row in resumed.facts.checkpoints] == [2, 4, 6]
    assert resumed.facts.checkpoints[-1].general_a_nats == unbroken.facts.checkpoints[-1].general_a_nats
    assert len(resumed.curve) == 6


def test_the_time_limit_ends_the_run_cleanly_with_a_measured_checkpoint(tmp_path: Path) -> None:
    report = trained(make_work_volume(tmp_path), pretrain_config(max_train_seconds=0.0))
    assert report.facts.ended_by == "BudgetReached"
    assert (
        report.facts.message == "pretraining's share of the GPU-hour limit (0 s) was used up at step 1 of 6"
    )
    assert [row.step for row in report.facts.checkpoints] == [1]
    again = trained(tmp_path, pretrain_config(max_train_seconds=0.0), try_number=2)
    assert (again.facts.ended_by, again.facts.message) == ("BudgetReached", report.facts.message)
    assert again.facts.steps == 1


def test_a_batch_that_cannot_be_split_is_refused_with_the_nearest_that_can(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    with pytest.raises(InputError) as caught:
        trained(work, pretrain_config(global_batch_size=5))
    assert str(caught.value) == (
        "globalBatchSize 5 cannot be split over 1 ranks with micro-batches of 2: it must be a multiple of 2; "
        "nearest: 4 or 6"
    )


def test_without_a_signing_key_nothing_is_trained(tmp_path: Path) -> None:
    import dataclasses

    config = pretrain_config()
    context = dataclasses.replace(make_context(tmp_path, tmp_path, config), signing_key=b"")
    with pytest.raises(InputError, match="needs the key that signs checkpoints"):
        pretrain.run(config, context)
