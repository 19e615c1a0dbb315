"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dapt_contract.measure import Measure
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.prepare import (
    PrepareFacts,
)
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing import resolve
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.resolve import (
    Batch,
    RankLayout,
    Steps,
    budget_steps,
    fit_batch,
    halved,
    pretrain_gang,
    replay_fraction,
)
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.attempts import Attempt
from dapt_operator.plan.stages.stage_plan import StagePlan


@dataclass(frozen=True)
class PretrainingPlan:
    """The resolved numbers of pretraining."""

    gang: RankLayout
    batch: Batch
    steps: Steps
    learning_rate: float
    replay_fraction: float
    sequence_length_tokens: int


def resolve_pretraining(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    base: Measure,
    attempt: Attempt,
    *,
    halvings: int = 0,
) -> PretrainingPlan | None:
    """The numbers of an attempt; None when the micro-batch cannot be halved as often as that.

    Raises:
        RefusedError: the batch cannot be divided, or nothing fits into memory.
    """
    gang = pretrain_gang(spec, profile)
    replay = replay_fraction(spec, base)
    length = prepared.sequence_length_tokens
    steps = budget_steps(
        spec, domain_tokens=prepared.domain_tokens, replay=replay, sequence_length_tokens=length
    )
    assert replay is not None
    assert steps is not None
    batch = fit_batch(
        grown_model(prepared.model, spec, prepared.tokenizer),
        spec,
        profile,
        gang,
        stage="pretraining",
        lora=resolve.pretraining_lora(spec),
        global_batch_size=spec.pretraining.global_batch_size,
        micro_batch_size=spec.pretraining.micro_batch_size,
        sequence_length_tokens=length,
    )
    smaller = halved(batch, halvings)
    if smaller is None:
        return None
    a_step = smaller.global_batch_size * length
    left = steps_left(steps, attempt.steps_before, a_step)
    return PretrainingPlan(gang, smaller, left, attempt.learning_rate, attempt.replay_fraction, length)


def steps_left(steps: Steps, before: int, tokens_a_step: int) -> Steps:
    """What an attempt trains that starts after `before` steps of the budget: checkpoints about as far apart as in the
    whole of it, and at least two, since one reading tells nothing of a direction."""
    if before == 0:
        return steps
    total = max(1, steps.total_steps - before)
    count = math.ceil(len(steps.checkpoint_steps) * total / steps.total_steps)
    count = min(total, max(2, count))
    return Steps(
        max(1, steps.total_tokens - before * tokens_a_step),
        total,
        tuple(round(number * total / count) for number in range(1, count + 1)),
    )


def pretrain_stage(
    spec: DomainAdaptationSpec,
    numbers: PretrainingPlan,
    base: Measure,
    attempt: Attempt,
    model: ModelReference,
    *,
    max_train_seconds: float | None = None,
) -> StagePlan:
    """Continued pre-training from `model`."""
    config = PretrainConfig(
        model=model,
        lora=resolve.pretraining_lora(spec),
        total_steps=numbers.steps.total_steps,
        checkpoint_steps=numbers.steps.checkpoint_steps,
        sequence_length_tokens=numbers.sequence_length_tokens,
        document_boundaries=spec.corpus.packing.document_boundaries,
        global_batch_size=numbers.batch.global_batch_size,
        micro_batch_size=numbers.batch.micro_batch_size,
        replay_fraction=numbers.replay_fraction,
        optimizer=common.optimizer(spec.pretraining.optimizer, numbers.learning_rate),
        schedule=common.schedule(spec.pretraining.schedule),
        distribution=common.distribution(numbers.batch),
        stop_rule=common.stop_rule(spec),
        base_general_perplexity=base.general.both.perplexity,
        evaluation_context_length_tokens=numbers.sequence_length_tokens,
        max_train_seconds=max_train_seconds,
        regularization=common.regularization(spec),
        earlier_phases=attempt.phases,
        seed=spec.seed,
    )
    return StagePlan(
        "pretrain",
        "pretrain",
        attempt.number,
        None,
        config,
        common.gang_resources(numbers.gang, spec, None),
        signs_checkpoints=True,
    )
