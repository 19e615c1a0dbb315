"""Plans pretrain: the numbers of an attempt of continued pre-training, and its configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from dapt_contract.measure import Measure
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.pretrain import PretrainConfig, RegularizationConfig
from dapt_contract.stop_rule import StopRule
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.model_fit.batch import Batch, BatchRequest, MemoryRule, fit_batch
from dapt_operator.plan.sizing.resolve import (
    RankLayout,
    Steps,
    counted_steps,
    evenly_spaced,
    pretrain_layout,
    pretraining_lora,
)
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.attempts import Attempt
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, StagePlan, rank_resources
from dapt_operator.remembered import remembered

_CACHED_PLANS: Final = 64


@dataclass(frozen=True)
class PretrainingPlan:
    """The resolved numbers of pretraining."""

    layout: RankLayout
    batch: Batch
    steps: Steps
    learning_rate: float
    replay_fraction: float
    sequence_length_tokens: int

    def with_batch(self, batch: Batch) -> PretrainingPlan:
        """Return the same numbers with another micro-batch; the global batch, and with it the steps, is the same."""
        return self if batch is self.batch else replace(self, batch=batch)


@remembered(_CACHED_PLANS)
def resolve_pretraining(
    inputs: StageInputs, first_replay: float, attempt: Attempt, memory_rule: MemoryRule = "withMargin"
) -> PretrainingPlan:
    """Return the numbers of an attempt.

    Args:
        inputs: what prepare has settled.
        first_replay: share of general tokens of the first attempt.
        attempt: the attempt.
        memory_rule: what must fit into memory.

    Raises:
        RefusedError: the batch cannot be divided, or nothing fits into memory.
    """
    spec, prepared = inputs.spec, inputs.prepared
    layout = pretrain_layout(spec, inputs.profile)
    length = prepared.sequence_length_tokens
    # The budget in tokens follows from the first attempt's replay; a rollback changes the mixture, not the budget.
    budget = counted_steps(
        spec,
        ranks=layout.world_size,
        domain_tokens=prepared.domain_tokens,
        replay=first_replay,
        sequence_length_tokens=length,
    )
    batch = fit_batch(
        BatchRequest(
            block="pretraining",
            layout=layout,
            model=grown_model(prepared.model, spec, prepared.tokenizer),
            lora=pretraining_lora(spec),
            global_batch_size=budget.global_batch_size,
            micro_batch_size=spec.pretraining.micro_batch_size,
            sequence_length_tokens=length,
            memory_rule=memory_rule,
        ),
        spec,
        inputs.profile,
    )
    left = _steps_left(budget, attempt.steps_before, batch.global_batch_size * length)
    return PretrainingPlan(layout, batch, left, attempt.learning_rate, attempt.replay_fraction, length)


def pretrain_stage(
    spec: DomainAdaptationSpec,
    numbers: PretrainingPlan,
    base: Measure,
    attempt: Attempt,
    model: ModelReference,
    *,
    max_train_seconds: float | None = None,
) -> StagePlan:
    """Return the plan of an attempt that continues the pre-training of `model`."""
    config = PretrainConfig(
        model=model,
        lora=pretraining_lora(spec),
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
        stop_rule=stop_rule(spec),
        base_general_perplexity=base.general.both.perplexity,
        evaluation_context_length_tokens=numbers.sequence_length_tokens,
        max_train_seconds=max_train_seconds,
        regularization=_regularization(spec),
        earlier_phases=attempt.phases,
        seed=spec.seed,
    )
    return StagePlan(
        kind="pretrain",
        attempt=attempt.number,
        config=config,
        resources=rank_resources(numbers.layout, spec, None),
        signs_checkpoints=True,
    )


def stop_rule(spec: DomainAdaptationSpec) -> StopRule:
    """Return the rule by which trainer and operator stop an attempt."""
    gates = spec.gates
    return StopRule(
        max_increase_fraction=gates.max_general_perplexity_increase,
        patience=gates.patience,
        hard_stop_factor=gates.hard_stop_factor,
        enforce_limit=gates.on_breach != "Warn",
    )


def _steps_left(budget: Steps, steps_before: int, tokens_per_step: int) -> Steps:
    """Return what an attempt trains that starts after `steps_before` steps of the budget.

    Its checkpoints lie about as far apart as in the whole budget, and there are at least two, since one reading shows
    no direction.
    """
    if steps_before == 0:
        return budget
    total = max(1, budget.total_steps - steps_before)
    checkpoints = math.ceil(len(budget.checkpoint_steps) * total / budget.total_steps)
    return Steps(
        max(1, budget.total_tokens - steps_before * tokens_per_step),
        total,
        evenly_spaced(total, min(total, max(2, checkpoints))),
        budget.global_batch_size,
    )


def _regularization(spec: DomainAdaptationSpec) -> RegularizationConfig | None:
    """Return the penalty against forgetting; None where the spec asks for none."""
    penalty = spec.pretraining.regularization
    if penalty is None:
        return None
    if penalty.ewc is not None:
        return RegularizationConfig(
            kind="ewc",
            strength=penalty.ewc.strength,
            samples=penalty.ewc.samples,
            parameters=penalty.ewc.parameters,
        )
    if penalty.l2sp is not None:
        return RegularizationConfig(kind="l2sp", strength=penalty.l2sp.strength)
    if penalty.kl_to_base is not None:
        return RegularizationConfig(kind="klToBase", strength=penalty.kl_to_base.strength)
    return None
